"""The errors that are told in words, the exit status of each, and what may stand in a message.

Everything else that is raised is a defect of ours and keeps its traceback.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable

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


class Stopped(Exception):  # noqa: N818 - it is no error: the run was asked to stop, and has been saved
    """The work was saved and ended by a signal, and a line has told so; `status` is the exit status."""

    def __init__(self, number: int):
        self.status = 128 + number
        super().__init__(f"saved and stopped (exit status {self.status})")


class Terminated(KeyboardInterrupt):
    """SIGTERM where it does the same as Ctrl-C."""


def told(error: BaseException | None) -> UserError | RunError | Stopped | None:
    """The error for people in `error`: itself, or what it wraps; None if there is none.

    A wrapper names what it wraps by `raise ... from`, or quotes its message, as jsonargparse does for an error in the
    constructor of a configured class. An error that merely happened while another was handled is no wrapper.
    """
    while error is not None:
        if isinstance(error, UserError | RunError | Stopped):
            return error
        context = error.__context__
        quoted = context is not None and bool(str(context)) and str(context) in str(error)
        error = error.__cause__ or (context if quoted else None)
    return None


def exit_status(command: Callable[[], int | None], program: str = "ldm-ae") -> int:
    """Run a command: its exit status, after one line on stderr if it failed for a reason that is told in words.

    Returns:
        0 on success or what the command returns, 2 for a user's mistake, 1 where the machine failed, 128 + n after
        signal n.
    """
    try:
        return command() or 0
    except BrokenPipeError:  # the reader of our output, such as `head`, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt as interrupt:
        terminated = isinstance(interrupt, Terminated)
        print(f"{program}: {'terminated' if terminated else 'interrupted'}", file=sys.stderr)
        return 143 if terminated else 130
    except Exception as error:
        found = told(error)
        if isinstance(found, Stopped):
            return found.status
        if found is None and isinstance(error, OSError):  # a full disk, a file that went away: the machine's fault
            found = RunError(f"{error.strerror or error}: {error.filename or ''}".rstrip(": "))
        if found is None:
            raise
        print(f"{program}: error: {found}", file=sys.stderr)
        return 2 if isinstance(found, UserError) else 1


def printable(text: object, limit: int = 160) -> str:
    """`text` for a message of one line, whatever a stranger's file has put there: control characters are escaped."""
    found = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in str(text)[:limit])
    return found if len(found) <= limit else f"{found[: limit - 3]}..."


def reason(error: BaseException, limit: int = 160) -> str:
    """The first line of another library's exception without terminal codes, or its class if it says nothing."""
    lines = _TERMINAL_CODE.sub("", str(error)).strip().splitlines()
    return printable(lines[0] if lines else type(error).__name__, limit)
