"""The errors that are reported as messages, the exit status of each, and the text that a message may contain.

Every other exception is a defect of this package and keeps its traceback.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable

_TERMINAL_CODE = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
"""Colours and bold type, which torch puts into some of its messages."""


class UserError(ValueError):
    """A user's mistake; the message gives the problem, its place and the fix, in one or two lines.

    The command line prints the message alone and exits with status 2.
    """


class RunError(RuntimeError):
    """A failure of the machine during a valid command, such as a full disk; the message has one or two lines.

    The command line prints the message alone and exits with status 1.
    """


class Stopped(Exception):  # noqa: N818 - this is not an error: a signal stopped the run, and it has been saved
    """A signal ended the work after it was saved and a line reported it; `status` is the exit status."""

    def __init__(self, number: int):
        self.status = 128 + number
        super().__init__(f"saved and stopped (exit status {self.status})")


class Terminated(KeyboardInterrupt):
    """SIGTERM in places where it acts like Ctrl-C."""


def reportable(error: BaseException | None) -> UserError | RunError | Stopped | None:
    """Return the reportable error in `error`: the error itself or the one that it wraps; None if there is none.

    A wrapper names the wrapped error by `raise ... from`, or quotes its message, as jsonargparse does for an error in
    the constructor of a configured class. An error raised while another was handled is not a wrapper.
    """
    while error is not None:
        if isinstance(error, UserError | RunError | Stopped):
            return error
        context = error.__context__
        quoted = context is not None and bool(str(context)) and str(context) in str(error)
        error = error.__cause__ or (context if quoted else None)
    return None


def exit_status(command: Callable[[], int | None], program: str = "ldm-ae") -> int:
    """Run a command and return its exit status; a reportable failure prints one line on stderr.

    Returns:
        0 on success or the value that the command returns, 2 for a user's mistake, 1 if the machine failed, 128 + n
        after signal n.
    """
    try:
        return command() or 0
    except BrokenPipeError:  # the reader of the output, such as `head`, has exited
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt as interrupt:
        terminated = isinstance(interrupt, Terminated)
        print(f"{program}: {'terminated' if terminated else 'interrupted'}", file=sys.stderr)
        return 143 if terminated else 130
    except Exception as error:
        found = reportable(error)
        if isinstance(found, Stopped):
            return found.status
        if found is None and isinstance(error, OSError):  # a full disk, a file that vanished: the machine's fault
            found = RunError(f"{error.strerror or error}: {error.filename or ''}".rstrip(": "))
        if found is None:
            raise
        print(f"{program}: error: {found}", file=sys.stderr)
        return 2 if isinstance(found, UserError) else 1


def printable(text: object, limit: int = 160) -> str:
    """Return `text` for a one-line message; control characters, which untrusted files may contain, are escaped."""
    found = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in str(text)[:limit])
    return found if len(found) <= limit else f"{found[: limit - 3]}..."


def reason(error: BaseException, limit: int = 160) -> str:
    """Return the first line of another library's exception without terminal codes, or its class if it has no text."""
    lines = _TERMINAL_CODE.sub("", str(error)).strip().splitlines()
    return printable(lines[0] if lines else type(error).__name__, limit)
