"""The output of a run in progress: metrics.jsonl, trackers, sample grids, a progress bar, terminal lines."""

from __future__ import annotations

import json
import math
import resource
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor

from ldm_ae.core.terminal import ProgressDisplay
from ldm_ae.io.files import writing


class Window:
    """Means over the steps since the last log line, kept on the device until they are read."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._images = 0
        self._seconds = 0.0

    def add(self, logs: Mapping[str, Tensor], images: int, seconds: float) -> None:
        """Add one step's scalars, its number of images over all processes, and its wall time in seconds."""
        for name, value in logs.items():
            value = value.detach().float()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._counts[name] = self._counts.get(name, 0) + 1
        self._images += images
        self._seconds += seconds

    def means(self, accelerator: Accelerator) -> dict[str, float]:
        """Return means over steps and processes, and empty the window. Every process must call it."""
        names = sorted(self._sums)
        values = torch.stack([self._sums[name].to(accelerator.device) / self._counts[name] for name in names])
        values = accelerator.reduce(values, reduction="mean")
        result = dict(zip(names, values.tolist(), strict=True))
        result["images_per_second"] = self._images / max(self._seconds, 1e-9)
        self._sums, self._counts, self._images, self._seconds = {}, {}, 0, 0.0
        return result


class RunLog:
    """The log of a run, written by the main process only.

    Args:
        folder: The run directory.
        accelerator: Its trackers get the same numbers.
        max_steps: Steps of the whole run, for the remaining time.
        global_batch: Images of a step over all processes, for the images per second.
    """

    def __init__(self, folder: Path, accelerator: Accelerator, max_steps: int, global_batch: int):
        self.folder = folder
        self.accelerator = accelerator
        self.main = accelerator.is_main_process
        self.progress = ProgressDisplay(
            "training", max_steps, unit="steps", images_per_unit=global_batch, shown=self.main
        )
        self.started = time.monotonic()

    def advance(self, step: int) -> None:
        """Update the progress bar to `step` completed steps."""
        self.progress(step)

    def metrics(self, step: int, values: Mapping[str, float | str], *, kind: str) -> None:
        """Write one line of metrics.jsonl, and the same values to the trackers under `kind/`."""
        if not self.main:
            return
        line = {"step": step, "kind": kind, "seconds": round(time.monotonic() - self.started, 3), **values}
        with open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        numbers = {f"{kind}/{name}": value for name, value in values.items() if isinstance(value, int | float)}
        self.accelerator.log(numbers, step=step)

    def rewind(self, step: int) -> None:
        """Remove the lines of metrics.jsonl after `step`, which a run that resumes there writes again."""
        path = self.folder / "metrics.jsonl"
        if not self.main or not path.is_file():
            return
        kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step]
        with writing(path) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")

    def print_line(self, text: str) -> None:
        """Print a line above the progress bar."""
        if self.main:
            self.progress.print_line(text)

    def changes(self, step: int, changed: Mapping[str, tuple[str, str]]) -> None:
        """Write the settings that a resumed run has from `step` on to the terminal and to metrics.jsonl."""
        for key, (before, after) in changed.items():
            self.print_line(f"from step {step}: {key} {before} -> {after}")
            self.metrics(step, {"setting": key, "from": before, "to": after}, kind="change")

    def warn(self, step: int, name: str, text: str) -> None:
        """Write a warning to the terminal and to metrics.jsonl."""
        self.print_line(f"warning at step {step}: {text}")
        self.metrics(step, {"alarm": name, "message": text}, kind="alarm")

    def save_grid(self, step: int, grid: Image.Image) -> None:
        """Save the grid as samples/step-XXXXXXXX.png."""
        if self.main:
            folder = self.folder / "samples"
            folder.mkdir(exist_ok=True)
            grid.save(folder / f"step-{step:08d}.png")


def _step_of(line: str) -> float:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf  # A partial line of a process that was killed.


def peak_memory_bytes(device: torch.device) -> int:
    """Return the peak memory in bytes: torch's allocations on an accelerator, else this process's resident size."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
