"""Errors that are reported in one line, even when other errors wrap them, and the exit status of each."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from ldm_ae.core.errors import RunError, Stopped, Terminated, UserError, exit_status, reportable


def raise_from() -> None:
    try:
        raise UserError("no such thing")
    except UserError as error:
        raise ValueError("does not validate") from error


def raise_from_twice() -> None:
    try:
        raise_from()
    except ValueError as error:
        raise TypeError("further out") from error


def quote() -> None:
    try:
        raise RunError("the disk is full")
    except RunError as error:
        raise ValueError(f"Errors: - {error}")  # noqa: B904 - without `from`, as some libraries do


def defect_while_handling() -> None:
    try:
        raise UserError("no such thing")
    except UserError:
        {}["a defect of ours"]


def raises(error: BaseException) -> Callable[[], None]:
    def command() -> None:
        raise error

    return command


@pytest.mark.parametrize(
    ("command", "status", "line"),
    [
        (lambda: None, 0, ""),
        (lambda: 3, 3, ""),
        (raises(UserError("no such thing")), 2, "tool: error: no such thing\n"),
        (raise_from, 2, "tool: error: no such thing\n"),
        (raise_from_twice, 2, "tool: error: no such thing\n"),
        (quote, 1, "tool: error: the disk is full\n"),
        (raises(Stopped(signal.SIGINT)), 130, ""),
        (raises(Stopped(signal.SIGTERM)), 143, ""),
        (raises(KeyboardInterrupt()), 130, "tool: interrupted\n"),
        (raises(Terminated()), 143, "tool: terminated\n"),
        (raises(OSError(28, "No space left on device", "/a/b")), 1, "tool: error: No space left on device: /a/b\n"),
    ],
)
def test_user_errors_set_the_exit_status_and_print_one_line(
    command: Callable[[], int | None], status: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_status(command, "tool") == status
    assert capsys.readouterr().err == line


def test_unexpected_exception_keeps_its_traceback() -> None:
    with pytest.raises(KeyError) as caught:
        exit_status(defect_while_handling)
    assert reportable(caught.value) is None
    with pytest.raises(ZeroDivisionError):
        exit_status(raises(ZeroDivisionError()))
