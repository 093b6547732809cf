"""The two errors that are told in words, and what may stand in a message.

Everything else that is raised is a defect of ours and keeps its traceback.
"""

import re

_TERMINAL_CODE = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
"""Colours and bold type, which torch puts into some of its messages."""


class UserError(ValueError):
    """A user's mistake: what is wrong, where, and what to do, in one or two lines.

    The command line prints the message alone and exits with status 2.
    """


class RunError(RuntimeError):
    """The work cannot go on though the command was right, such as for a full disk; in one or two lines.

    The command line prints the message alone and exits with status 1.
    """


def printable(text: object, limit: int = 160) -> str:
    """`text` for a message of one line, whatever a stranger's file has put there: control characters are escaped."""
    found = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in str(text)[:limit])
    return found if len(found) <= limit else f"{found[: limit - 3]}..."


def reason(error: BaseException, limit: int = 160) -> str:
    """The first line of another library's exception without terminal codes, or its class if it says nothing."""
    lines = _TERMINAL_CODE.sub("", str(error)).strip().splitlines()
    return printable(lines[0] if lines else type(error).__name__, limit)
