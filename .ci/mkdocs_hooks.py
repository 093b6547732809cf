"""Hooks of mkdocs: the README as the home page, a page for each public package, and links into the repository.

Nothing is written beside the sources: pages that have no file in docs/ exist in the build alone.
"""

from __future__ import annotations

import ast
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
_LINK = re.compile(r"(\]\()([^)#\s:]+)((?:#[^)]*)?\))")


def public_packages() -> dict[str, list[str]]:
    """Return the names in `__all__` of each package below ldm_ae that has one, by its dotted name."""
    found = {}
    for path in sorted((ROOT / "ldm_ae").rglob("__init__.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__all__"]:
                assert isinstance(node.value, ast.List), f"{path}: __all__ must be a list"
                names = [name.value for name in node.value.elts if isinstance(name, ast.Constant)]
                package = ".".join(path.parent.relative_to(ROOT).parts)
                found[package] = [name for name in names if not str(name).startswith("__")]
    return found


def api_page(package: str, names: list[str]) -> str:
    """Return the Markdown of a package's page."""
    members = "".join(f"        - {name}\n" for name in names)
    return f"# {package}\n\n::: {package}\n    options:\n      show_root_heading: false\n      members:\n{members}"


def on_config(config: Any) -> Any:
    """Add the packages to the navigation."""
    section = next(entry for entry in config["nav"] if "API" in entry)
    section["API"] = [{package: f"api/{package}.md"} for package in public_packages()]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the home page and the packages' pages."""
    pages = {f"api/{package}.md": api_page(package, names) for package, names in public_packages().items()}
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    pages["index.md"] = _LINK.sub(lambda link: link[1] + _from_docs(link[2]) + link[3], readme)
    for path, content in pages.items():
        files.append(File.generated(config, path, content=content))
    return files


def _from_docs(target: str) -> str:
    """A link of the README as one from a page in docs/."""
    return target.removeprefix("docs/") if target.startswith("docs/") else f"../{target}"


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:  # noqa: ARG001 - the hook's signature
    """Let links to files outside of docs/ lead to the repository.

    Raises:
        FileNotFoundError: there is no such file.
    """

    def rewrite(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join("docs", link[2]))
        if target.startswith("docs/"):
            return link[0]  # mkdocs checks these
        path = ROOT / target
        if not path.exists():
            raise FileNotFoundError(f"{page.file.src_uri} links to {link[2]}, which does not exist")
        return f"{link[1]}{config['repo_url']}/{'tree' if path.is_dir() else 'blob'}/main/{target}{link[3]}"

    return markdown if page.file.src_uri.startswith("api/") else _LINK.sub(rewrite, markdown)
