"""Classes that are found by name: those in a folder of this package, and those of other packages.

A class registers by its location: a registry scans the modules of one package of ours for concrete subclasses of
one base class. Modules whose names begin with `_` are skipped. Another package adds classes by an entry point:

    [project.entry-points."ldm_ae.plugins"]
    my_plugin = "my_package.my_module"

Each entry point names a module. Every concrete subclass of a registry's base class that this module defines is treated
as if it were in the registry's folder. A file or a command line can name only registered classes, so that loading is
safe: a name is looked up, and nothing is imported because a file names it.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from ldm_ae.core.errors import UserError, printable, reason

PLUGINS = "ldm_ae.plugins"
"""The group of entry points that name plugin modules."""

T = TypeVar("T")

_importing: list[str] = []
"""Names of plugins whose import is in progress. A registry that is queried meanwhile does not cache its result."""


class UnknownNameError(UserError, KeyError):
    """A name that a registry does not have. Because it is a `KeyError`, `in` and `get` of the registry work."""

    __str__ = Exception.__str__


class Registry(Mapping[str, type[T]]):
    """The concrete subclasses of `base` in a package of ours and in plugins, by name, in alphabetical order.

    Nothing is scanned before the first use, so that modules of the package and plugins may import the registry.

    Args:
        package: The package whose modules are scanned, such as `ldm_ae.quantizers`.
        base: Base class of the registered classes.
        kind: Name of the kind in messages, such as `quantizer`.
        key: Class attribute that holds a class's name or a tuple of names.
        by_file: Whether each module (except `interface.py`) holds one class whose name is the module's, with hyphens
            for underscores. Then `names` imports none of them, and `[name]` imports one.
    """

    def __init__(self, package: str, base: type[T], kind: str, *, key: str = "__name__", by_file: bool = False):
        self.package, self.base, self.kind, self.key, self.by_file = package, base, kind, key, by_file
        self._ours: dict[str, type[T]] = {}
        self._others: dict[str, type[T]] | None = None

    def __getitem__(self, name: str) -> type[T]:
        """Return the class of a name.

        Raises:
            UnknownNameError: No class has this name; the message lists the names and suggests the nearest one.
            UserError: A plugin cannot be imported, or two classes have one name.
        """
        names = self.names()
        if name not in names:
            raise unknown_name(self.kind, name, names)
        return self._own(name) or self._plugins()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __len__(self) -> int:
        return len(self.names())

    def names(self) -> tuple[str, ...]:
        """Return all names, sorted. With `by_file` this imports only plugins.

        Raises:
            UserError: A plugin cannot be imported, or two classes have one name.
        """
        if not self.by_file:
            self._scan()
        own = modules_by_name(self.package) if self.by_file else self._ours
        others = self._plugins()
        for name in own.keys() & others.keys():
            ours = full_name(self._ours[name]) if name in self._ours else modules_by_name(self.package)[name]
            raise self._duplicate(name, ours, others[name])
        return tuple(sorted({*own, *others}))

    def classes(self) -> tuple[type[T], ...]:
        """Return every class once, in the order of its first name."""
        return tuple(dict.fromkeys(self.values()))

    def by_short_name(self, name: str) -> type[T] | None:
        """Return the class that the field calls `name`, such as `hinge` for `HingeLoss`; None if there is none.

        A class has its own name in lower case, and those of its attribute `short_names`, a tuple of strings that
        subclasses do not inherit. Capitals, hyphens and underscores make no difference.

        Raises:
            UserError: Two classes have one short name.
        """
        found: dict[str, type[T]] = {}
        for cls in self.classes():
            for short in dict.fromkeys(_plain(short) for short in (cls.__name__, *short_names(cls))):
                self._add(found, {short: cls})
        return found.get(_plain(name))

    def of_path(self, path: str) -> type[T]:
        """Return the class of a class path such as `ldm_ae.quantizers.VQ` or of a class's name, without importing it.

        Raises:
            UnknownNameError: No registered class has this path.
        """
        classes = self.classes()
        for cls in classes:
            if path in (cls.__name__, *class_paths(cls)):
                return cls
        raise unknown_name(self.kind, path, [cls.__name__ for cls in classes])

    def _own(self, name: str) -> type[T] | None:
        if self.by_file and name not in self._ours and (module := modules_by_name(self.package).get(name)):
            found = self._of_module(importlib.import_module(module))
            assert set(found) == {name}, f"{module} must hold one {self.kind} named {name!r}, and holds {list(found)}"
            self._ours |= found
        return self._ours.get(name)

    def _scan(self) -> None:
        if not self._ours:
            found: dict[str, type[T]] = {}
            for module in modules_by_name(self.package).values():
                self._add(found, self._of_module(importlib.import_module(module)))
            self._ours = found

    def _plugins(self) -> dict[str, type[T]]:
        """Return the classes of plugins by name, cached once all plugins are imported."""
        if self._others is None:
            found: dict[str, type[T]] = {}
            for module in plugin_modules():
                self._add(found, self._of_module(module))
            if _importing:
                return found
            self._others = found
        return self._others

    def _add(self, found: dict[str, type[T]], more: dict[str, type[T]]) -> None:
        for name, cls in more.items():
            if found.setdefault(name, cls) is not cls:
                raise self._duplicate(name, full_name(found[name]), cls)

    def _of_module(self, module: ModuleType) -> dict[str, type[T]]:
        found: dict[str, type[T]] = {}
        for cls in classes_of(module, self.base):
            names: Any = getattr(cls, self.key, None)
            names = (names,) if isinstance(names, str) else names
            if not isinstance(names, tuple) or not all(isinstance(name, str) for name in names):
                expected = f"expected a string or a tuple of strings as its `{self.key}`"
                raise UserError(f"{full_name(cls)} is not a valid {self.kind}: {expected}")
            self._add(found, dict.fromkeys(names, cls))
        return found

    def _duplicate(self, name: str, first: str, second: type[T]) -> UserError:
        kinds = f"{self.kind}{'es' if self.kind.endswith('s') else 's'}"
        return UserError(
            f"two {kinds} are named {name!r}: {first} and {full_name(second)}. Rename one, or remove its package"
        )


def unknown_name(kind: str, name: object, names: Sequence[str]) -> UnknownNameError:
    """Build the error for `name`, which is not among `names`: it lists them and suggests the nearest one."""
    leaf = str(name).rpartition(".")[2].lower()
    near = difflib.get_close_matches(leaf, [known.lower() for known in names], n=1)
    meant = [known for known in names if known.lower() in near]
    question = f"did you mean {meant[0]}? There are" if meant else "there are"
    return UnknownNameError(f"no {kind} is named '{printable(name)}'; {question} {', '.join(names) or 'none'}")


def short_names(cls: type[Any]) -> tuple[str, ...]:
    """Return the names in the field that a class itself declares."""
    found: tuple[str, ...] = vars(cls).get("short_names", ())
    return found


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")


def class_paths(cls: type[Any]) -> list[str]:
    """Return the paths by which a file may name a class: in its module, or in a parent package that may export it."""
    parts = cls.__module__.split(".")
    return [".".join([*parts[:count], cls.__name__]) for count in range(1, len(parts) + 1)]


def export(package: str, name: str, *registries: Registry[Any]) -> type[Any]:
    """Return the class `name` of `registries`, for the module `__getattr__` of a package that exports their classes.

    Raises:
        AttributeError: No class has this name.
    """
    if not name.startswith("_") and f"{package}.{name}" not in modules_by_name(package).values():
        for cls in (cls for registry in registries for cls in registry.classes()):
            if cls.__name__ == name:
                return cls
    raise AttributeError(f"module {package!r} has no attribute {name!r}")


def modules_by_name(package: str) -> dict[str, str]:
    """Return the modules of a package of ours by their public names (`fast-dit` for `fast_dit.py`, `import` for
    `import_.py`), sorted.

    Only files are listed. Neither the modules nor the package, which may take seconds, are imported.
    """
    root, *parts = package.split(".")
    folders = [str(Path(folder, *parts)) for folder in importlib.import_module(root).__path__]
    names = sorted(info.name for info in pkgutil.iter_modules(folders))
    named = [name for name in names if not name.startswith("_") and name != "interface"]
    return {name.rstrip("_").replace("_", "-"): f"{package}.{name}" for name in named}


def names_of(package: str, registry: str) -> tuple[str, ...]:
    """Return the names of a registry `by_file`, without importing its package unless a plugin is installed.

    Args:
        package: The package that is scanned, such as `ldm_ae.latents.formats`.
        registry: The name of the registry in this package, such as `FORMATS`.
    """
    if not plugin_entry_points():
        return tuple(modules_by_name(package))
    found: Registry[Any] = getattr(importlib.import_module(package), registry)
    return found.names()


def plugin_entry_points() -> list[EntryPoint]:
    """Return the entry points of installed plugins, sorted by name, without importing them."""
    return sorted(entry_points(group=PLUGINS), key=lambda point: (point.name, point.value))


def plugin_modules() -> list[ModuleType]:
    """Return the module of each installed plugin, imported once.

    Raises:
        UserError: A plugin cannot be imported.
    """
    found = []
    for point in plugin_entry_points():
        _importing.append(point.name)
        try:
            found.append(importlib.import_module(point.module))
        except Exception as error:
            package = point.dist.name if point.dist is not None else point.module
            raise UserError(
                f"the plugin {point.name} ({point.module} of the package {package}) cannot be imported: "
                f"{type(error).__name__}: {reason(error)}. Fix or uninstall this package"
            ) from error
        finally:
            _importing.pop()
    return found


def classes_of(module: ModuleType, base: type[T]) -> list[type[T]]:
    """Return the public concrete subclasses of `base` that `module` itself defines."""
    return [
        item
        for name, item in vars(module).items()
        if isinstance(item, type)
        and item.__module__ == module.__name__
        and name == item.__name__
        and not name.startswith("_")
        and issubclass(item, base)
        and not inspect.isabstract(item)
        and item is not base
    ]


def full_name(cls: type[Any]) -> str:
    """Return the module and name of a class."""
    return f"{cls.__module__}.{cls.__qualname__}"
