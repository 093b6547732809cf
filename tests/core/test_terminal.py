"""Progress lines without a terminal: their text, when they are printed, and when they stop."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time

import pytest

from ldm_ae.core.terminal import ProgressDisplay, ProgressLines, lines_of


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_progress_line_has_steps_images_per_second_and_time_left() -> None:
    clock = Clock()
    lines = ProgressLines("training", 600, unit="steps", images_per_unit=8, clock=clock)
    clock.now = 10.0
    assert lines.line() == "training: 0/600 steps, 0:00:10 elapsed"
    lines.update(500)  # resumed there: these steps took no time
    assert lines.line() == "training: 500/600 steps, 0:00:10 elapsed"
    clock.now = 14.0
    lines.update(502)  # two steps of 8 images in 4 s
    clock.now = 15.0
    assert lines.line() == "training: 502/600 steps, 4.0 images/s, 0:00:15 elapsed, 0:03:16 left"


def test_speed_is_measured_over_a_recent_window() -> None:
    clock = Clock()
    lines = ProgressLines("encoding", None, clock=clock)
    for second in range(61):
        clock.now = float(second)
        lines.update(1000 * min(second, 30) + max(second - 30, 0), 100_000)
    assert lines.line() == "encoding: 30030/100000 images, 1.0 images/s, 0:01:00 elapsed, 19:26:10 left"


def test_steps_longer_than_the_window_have_a_speed() -> None:
    clock = Clock()
    lines = ProgressLines("training", 10, unit="steps", clock=clock)
    for step in range(4):
        clock.now = 100.0 * step
        lines.update(step)
    assert lines.line() == "training: 3/10 steps, 0.01 images/s, 0:05:00 elapsed, 0:11:40 left"


def test_progress_without_images_omits_images_per_second() -> None:
    clock = Clock()
    lines = ProgressLines("checking", None, unit="files", images_per_unit=None, clock=clock)
    for second in range(3):
        clock.now = float(second)
        lines.update(2 * second, 10)
    assert lines.line() == "checking: 4/10 files, 0:00:02 elapsed, 0:00:03 left"


def test_many_updates_use_bounded_memory() -> None:
    clock = Clock()
    lines = ProgressLines("reading", 10**6, clock=clock)
    for number in range(100_000):
        clock.now = number / 10_000
        lines.update(number)
    assert len(lines._updates) < 100
    assert "10000.0 images/s" in lines.line()


def test_progress_lines_are_printed_during_a_slow_step(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressLines("training", 2, unit="steps", seconds=0.02) as lines:
        time.sleep(0.2)
        lines.update(2)
    printed = capsys.readouterr().err.splitlines()
    assert len(printed) >= 3
    assert printed[0] == "training: 0/2 steps, 0:00:00 elapsed"
    assert printed[-1] == "training: 2/2 steps, 0:00:00 elapsed"
    assert not [thread for thread in threading.enumerate() if thread.name == "progress"]


def test_short_work_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressDisplay("encoding", 2) as progress:
        progress(2)
    assert capsys.readouterr().err == ""


def test_progress_lines_stop_after_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError), ProgressLines("training", 2, unit="steps", seconds=0.02):
        time.sleep(0.1)
        raise ZeroDivisionError
    count = len(capsys.readouterr().err.splitlines())
    assert count >= 1
    time.sleep(0.1)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("forced", [False, True])
def test_output_to_a_pipe_has_lines_without_terminal_codes(forced: bool, tmp_path: object) -> None:
    """Also where FORCE_COLOR is set; and a process that ends within the work ends, whatever the thread does."""
    program = (
        "import sys, time, ldm_ae.core.terminal as terminal\n"
        "terminal.ProgressLines.__init__.__kwdefaults__['seconds'] = 0.02\n"
        "terminal.ProgressDisplay('encoding', 5).__enter__()(3)\n"
        "time.sleep(0.2)\n"
    )
    environment = {"FORCE_COLOR": "1"} if forced else {}
    ended = subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONPATH": ":".join(sys.path)} | environment, capture_output=True,
        text=True, timeout=30,
    )  # fmt: skip
    assert ended.returncode == 0
    assert re.match(r"encoding: 3/5 images, 0:00:00 elapsed\n", ended.stderr)
    assert "\x1b" not in ended.stderr


def test_tree_of_values_is_formatted_for_people() -> None:
    tree = {"best": {"value": 12.114593187967936, "rank": None}, "ema": False, "std": [0.5, 1 / 3], "problems": []}
    assert list(lines_of(tree)) == [
        "best:", "  value: 12.1146", "  rank: none", "ema: no", "std: 0.5, 0.333333", "valid: yes",
    ]  # fmt: skip
