"""Registries: the classes that a folder and installed plugins register by name, and refusals."""

import abc
import importlib
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from ldm_ae.core.errors import UserError
from ldm_ae.core.registry import Registry, UnknownNameError, export, modules_by_name
from tests.plugins import write_plugin

PACKAGE = {
    "__init__": "",
    "interface": """
        import abc

        class Base(abc.ABC):
            @abc.abstractmethod
            def run(self): ...
    """,
    "one": """
        from house.interface import Base

        class Middle(Base):
            pass

        class First(Middle):
            name = "one"
            names = ("un", "uno")
            def run(self): return 1

        class _Hidden(First):
            pass
    """,
    "second_one": """
        from house.interface import Base
        from house.one import First

        class Second(First):
            name = "second-one"
            names = ("deux",)
            def run(self): return 2
    """,
    "_private": "raise RuntimeError('a module whose name begins with _ is not imported')",
}


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[abc.ABC]]:
    """The base class of a package `house` whose modules are scanned. The fixture removes its imports afterwards."""
    before = set(sys.modules)
    folder = tmp_path / "ours" / "house"
    folder.mkdir(parents=True)
    for name, content in PACKAGE.items():
        (folder / f"{name}.py").write_text(textwrap.dedent(content))
    monkeypatch.syspath_prepend(folder.parent)
    yield importlib.import_module("house.interface").Base
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """Install a package of one module as a plugin."""

    def install(name: str, content: str) -> Path:
        site = write_plugin(tmp_path / f"site_{name}", name, content)
        monkeypatch.syspath_prepend(site)
        return site

    return install


PLUGIN = """
    from house.interface import Base

    class Third(Base):
        name = "third"
        def run(self): return 3

    class Unfinished(Base):
        name = "unfinished"
"""


def test_registry_finds_concrete_classes_of_its_folder(base: type) -> None:
    registry = Registry("house", base, "thing")
    assert registry.names() == ("First", "Second")
    assert registry["Second"]().run() == 2
    assert "Middle" not in registry
    assert "_Hidden" not in registry
    assert registry.get("Base") is None
    assert len(registry) == 2


def test_registry_scans_at_first_use_and_imports_each_module_once(base: type) -> None:
    registry = Registry("house", base, "thing")
    assert "house.one" not in sys.modules
    first = registry["First"]
    assert first is sys.modules["house.one"].First
    assert Registry("house", base, "thing")["First"] is first


def test_registry_by_file_lists_names_without_imports(base: type) -> None:
    registry = Registry("house", base, "thing", key="name", by_file=True)
    assert registry.names() == ("one", "second-one")
    assert registry["one"].__name__ == "First"
    assert "house.second_one" not in sys.modules, "one name imports one module"
    assert modules_by_name("house") == {"one": "house.one", "second-one": "house.second_one"}


def test_class_can_have_several_names(base: type) -> None:
    registry = Registry("house", base, "thing", key="names")
    assert registry.names() == ("deux", "un", "uno")
    assert registry["un"] is registry["uno"]
    assert [cls.__name__ for cls in registry.classes()] == ["Second", "First"]


@pytest.mark.parametrize("by_file", [False, True])
def test_plugin_adds_its_concrete_classes(base: type, install: Callable[[str, str], Path], by_file: bool) -> None:
    install("extra_things", PLUGIN)
    registry = Registry("house", base, "thing", key="name", by_file=by_file)
    assert registry.names() == ("one", "second-one", "third")
    assert registry["third"]().run() == 3
    assert registry["one"]().run() == 1


def test_unknown_name_lists_names_and_gives_the_nearest(base: type, install: Callable[[str, str], Path]) -> None:
    install("extra_things", PLUGIN)
    registry = Registry("house", base, "thing")
    with pytest.raises(UnknownNameError) as refused:
        registry["secnd"]
    assert str(refused.value) == "no thing is named 'secnd'; did you mean Second? There are First, Second, Third"
    with pytest.raises(UserError, match=r"^no thing is named 'x\\n'; there are First, Second, Third$"):
        registry["x\n"]


@pytest.mark.parametrize(
    ("by_file", "first"), [(False, r"house\.one\.First"), (True, r"house\.one")], ids=["by class", "by file"]
)
def test_duplicate_class_names_are_refused(
    base: type, install: Callable[[str, str], Path], by_file: bool, first: str
) -> None:
    install("twin", PLUGIN.replace('"third"', '"one"'))
    with pytest.raises(UserError, match=rf"^two things are named 'one': {first} and twin\.Third\. Rename one"):
        Registry("house", base, "thing", key="name", by_file=by_file).names()


def test_duplicate_plugin_names_are_refused(base: type, install: Callable[[str, str], Path]) -> None:
    install("a_things", PLUGIN)
    install("b_things", PLUGIN)
    with pytest.raises(UserError, match=r"'Third': a_things\.Third and b_things\.Third"):
        Registry("house", base, "thing")["First"]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("import no_such_library", "ModuleNotFoundError: No module named 'no_such_library'"),
        ("raise RuntimeError('two\\nlines')", "RuntimeError: two"),
        ("1 +", "SyntaxError: invalid syntax"),
    ],
)
def test_plugin_import_failure_is_reported_in_one_line(
    base: type, install: Callable[[str, str], Path], content: str, why: str
) -> None:
    install("broken", content)
    with pytest.raises(UserError) as refused:
        Registry("house", base, "thing").names()
    message = str(refused.value)
    assert message.startswith(f"the plugin broken (broken of the package broken) cannot be imported: {why}")
    assert "\n" not in message


def test_plugin_class_without_a_name_is_refused(base: type, install: Callable[[str, str], Path]) -> None:
    install("nameless", PLUGIN.replace('name = "third"', "pass"))
    with pytest.raises(
        UserError,
        match=r"nameless\.Third is not a valid thing: expected a string .* as its `name`",
    ):
        Registry("house", base, "thing", key="name").names()


def test_plugin_may_use_a_registry_during_its_import(base: type, install: Callable[[str, str], Path]) -> None:
    registry: Registry[abc.ABC] = Registry("house", base, "thing")
    Asked.registry = registry
    asks = "from tests.core.test_registry import Asked\nAsked.found = Asked.registry.names()\n"
    install("asking", asks + textwrap.dedent(PLUGIN))
    assert registry.names() == ("First", "Second", "Third")
    assert Asked.found == ("First", "Second"), "the plugin's own class did not exist yet"


class Asked:
    """What the plugin of the test above asks, and hears."""

    registry: ClassVar[Registry[abc.ABC]]
    found: ClassVar[tuple[str, ...]] = ()


def test_package_exports_every_registered_class(base: type, install: Callable[[str, str], Path]) -> None:
    install("extra_things", PLUGIN)
    registry = Registry("house", base, "thing", key="name")
    assert export("house", "Third", registry).__module__ == "extra_things"
    for name in ("one", "Middle", "__wrapped__", "Nothing"):
        with pytest.raises(AttributeError, match="module 'house' has no attribute"):
            export("house", name, registry)


def test_listing_names_imports_packages_only_for_plugins(
    base: type, install: Callable[[str, str], Path], tmp_path: Path
) -> None:
    (tmp_path / "ours" / "house" / "__init__.py").write_text(
        "from ldm_ae.core.registry import Registry\nfrom house.interface import Base\n"
        "THINGS = Registry(__name__, Base, 'thing', key='name', by_file=True)\n"
    )
    site = write_plugin(tmp_path / "site", "extra_things", PLUGIN)
    asked = (
        "import sys; from ldm_ae.core.registry import names_of; import rooms;"
        "print(names_of('rooms.house', 'THINGS'), 'rooms.house' in sys.modules)"
    )
    rooms = tmp_path / "rooms" / "rooms"
    rooms.mkdir(parents=True)
    (rooms / "__init__.py").write_text("")
    (tmp_path / "ours" / "house").rename(rooms / "house")
    for file in (*(rooms / "house").glob("*.py"), site / "extra_things.py"):
        file.write_text(file.read_text().replace("from house", "from rooms.house"))

    def ask(*paths: Path) -> str:
        code = f"import sys; sys.path[:0] = {[str(path) for path in paths]!r}; {asked}"
        return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout

    assert ask(rooms.parent) == "('one', 'second-one') False\n"
    assert ask(rooms.parent, site) == "('one', 'second-one', 'third') True\n"
