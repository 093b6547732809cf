"""What a run tells while it goes: metrics.jsonl, trackers, sample grids, a progress bar, lines on the terminal."""

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
    """Means over the steps since the last log line, on the device until they are asked for."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._images = 0
        self._seconds = 0.0

    def add(self, logs: Mapping[str, Tensor], images: int, seconds: float) -> None:
        """One step's scalars, its images over all processes, and its wall time."""
        for name, value in logs.items():
            value = value.detach().float()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._counts[name] = self._counts.get(name, 0) + 1
        self._images += images
        self._seconds += seconds

    def means(self, accelerator: Accelerator) -> dict[str, float]:
        """Means over steps and processes; empties the window. Every process must call it."""
        names = sorted(self._sums)
        values = torch.stack([self._sums[name].to(accelerator.device) / self._counts[name] for name in names])
        values = accelerator.reduce(values, reduction="mean")
        result = dict(zip(names, values.tolist(), strict=True))
        result["images_per_second"] = self._images / max(self._seconds, 1e-9)
        self._sums, self._counts, self._images, self._seconds = {}, {}, 0, 0.0
        return result


class RunLog:
    """Writes on the main process only.

    Args:
        folder: The run directory.
        accelerator: Its trackers get the same numbers.
        max_steps: Steps of the whole run, for the time left.
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
        """Show that `step` steps are done."""
        self.progress(step)

    def metrics(self, step: int, values: Mapping[str, float | str], *, kind: str) -> None:
        """One line of metrics.jsonl, and the same for the trackers under `kind/`."""
        if not self.main:
            return
        line = {"step": step, "kind": kind, "seconds": round(time.monotonic() - self.started, 3), **values}
        with open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        numbers = {f"{kind}/{name}": value for name, value in values.items() if isinstance(value, int | float)}
        self.accelerator.log(numbers, step=step)

    def rewind(self, step: int) -> None:
        """Leave out the lines of metrics.jsonl after `step`, which a run that goes on from there writes again."""
        path = self.folder / "metrics.jsonl"
        if not self.main or not path.is_file():
            return
        kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step]
        with writing(path) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")

    def say(self, text: str) -> None:
        """Print a line, above the bar."""
        if self.main:
            self.progress.say(text)

    def changes(self, step: int, changed: Mapping[str, tuple[str, str]]) -> None:
        """The settings that a continued run has from `step` on, on the terminal and in metrics.jsonl."""
        for key, (before, after) in changed.items():
            self.say(f"from step {step} on: {key} {before} -> {after}")
            self.metrics(step, {"setting": key, "from": before, "to": after}, kind="change")

    def warn(self, step: int, name: str, text: str) -> None:
        """A warning on the terminal and in metrics.jsonl."""
        self.say(f"warning at step {step}: {text}")
        self.metrics(step, {"alarm": name, "message": text}, kind="alarm")

    def picture(self, step: int, grid: Image.Image) -> None:
        """samples/step-XXXXXXXX.png."""
        if self.main:
            folder = self.folder / "samples"
            folder.mkdir(exist_ok=True)
            grid.save(folder / f"step-{step:08d}.png")


def _step_of(line: str) -> float:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf  # half a line of a process that was killed


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory used so far: on an accelerator what torch allocated there, else this process's resident size."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
