"""Names from configurations and files in Markdown: they are shown as they are, and never act as markup.

CommonMark (spec.commonmark.org/0.31.2): a backslash before ASCII punctuation makes it a literal character; in a code
span nothing is markup but the backticks that end it, and in a table of GitHub's flavour a bar.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_MARKUP = re.compile(r"[\\`*_\[\]<>#!|&~$@]|:(?=\S)|(?<=www)\.|^[-+=](?=\s)|^[-+=]{2,}", re.IGNORECASE)
"""Characters that may begin markup: anywhere (emphasis, code, links, HTML, tables, mathematics, addresses that GitHub's
flavour turns into links) and at the start of a line (lists, headings, rules)."""
_NUMBERED = re.compile(r"^(\d{1,9})([.)])(?=\s|$)")


def escaped(value: object, limit: int = 300) -> str:
    """Return text of one line in which nothing is markup."""
    return _NUMBERED.sub(r"\1\\\2", _MARKUP.sub(_with_backslash, one_line(value, limit).strip()))


def _with_backslash(found: re.Match[str]) -> str:
    return "".join(f"\\{char}" for char in found[0])


def code(value: object, limit: int = 300) -> str:
    """Return a code span of one line, also valid in a table, where a bar would end the cell: it is shown broken."""
    text = one_line(value, limit).strip() or "(empty)"
    fence = "`" * (max((len(run) for run in re.findall("`+", text)), default=0) + 1)
    space = " " if "`" in text else ""
    return f"{fence}{space}{text.replace('|', '¦')}{space}{fence}"


def one_line(value: object, limit: int = 300) -> str:
    """Return text without line breaks and control characters, cut at `limit` characters."""
    text = "".join(char if char.isprintable() else " " for char in str(value))
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of cells that are already Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
