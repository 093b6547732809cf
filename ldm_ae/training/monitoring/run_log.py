"""The output of a run in progress: metrics.jsonl, trackers, sample grids, a progress bar, terminal lines."""

from __future__ import annotations

import json
import math
import resource
import sys
import time
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor

from ldm_ae.core.terminal import ProgressDisplay
from ldm_ae.io.files import writing
from ldm_ae.models import LatentSpec
from ldm_ae.training.monitoring.trackers import log_image
from ldm_ae.training.phases import Phase

METRICS = "metrics.jsonl"
"""The log in a run directory."""
HISTORY = "history.jsonl"
"""The changes of settings in a run directory: an object for each resume that changed some."""
_FINISHED = "finished"
_SHOWN = (
    "rec_loss", "perceptual_loss", "kl_loss", "commitment_loss", "codebook_usage", "total_correlation_loss",
    "alignment_per_latent", "diffusion_per_latent", "generator_loss", "discriminator_loss", "adaptive_weight",
)  # fmt: skip
"""The values that the terminal shows."""


class Window:
    """Means over the steps since the last log line, kept on the device until they are read."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._images = 0
        self._seconds = 0.0
        self._latents = 0
        self.mean_latents = 0.0
        """Mean number of latent vectors of an image, before the last call of `means`."""

    def add(self, logs: Mapping[str, Tensor], images: int, seconds: float, latents: int = 0) -> None:
        """Add one step's scalars, its number of images over all processes, its wall time in seconds, and the number of
        latent vectors of each image."""
        for name, value in logs.items():
            value = value.detach().float()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._counts[name] = self._counts.get(name, 0) + 1
        self._images += images
        self._seconds += seconds
        self._latents += images * latents

    def means(self, accelerator: Accelerator) -> dict[str, float]:
        """Return means over steps and processes, and empty the window. Every process must call it."""
        names = sorted(self._sums)
        values = torch.stack([self._sums[name].to(accelerator.device) / self._counts[name] for name in names])
        values = accelerator.reduce(values, reduction="mean")
        result = dict(zip(names, values.tolist(), strict=True))
        result["images_per_second"] = self._images / max(self._seconds, 1e-9)
        self.mean_latents = self._latents / self._images
        self._sums, self._counts, self._images, self._seconds, self._latents = {}, {}, 0, 0.0, 0
        return result


def relative_values(
    values: Mapping[str, float], spec: LatentSpec, latents: float, global_batch: int
) -> dict[str, float]:
    """Return terms that are sums over an image's latents, such as the KL in nats, as means over their elements, and the
    fraction of the codes in use; each where the values allow it.

    Args:
        values: Means over some steps.
        spec: The latents.
        latents: Mean number of latent vectors of an image.
        global_batch: Images of a step.
    """
    sums = {name: values[f"{name}_loss"] for name in ("kl", "alignment", "diffusion") if f"{name}_loss" in values}
    found = {f"{name}_per_latent": value / (spec.channels * latents) for name, value in sums.items()}
    if "codebook_perplexity" in values:
        assert spec.codebook_size is not None
        # One step can use each code once, or one per latent vector of its images.
        found["codebook_spread"] = values["codebook_perplexity"] / min(spec.codebook_size, global_batch * latents)
    return found


class RunLog:
    """The log of a run, written by the main process only.

    Args:
        folder: The run directory.
        accelerator: Its trackers get the same numbers.
        max_steps: Steps of the run, or of the phase, for the remaining time; None where time ends it.
        global_batch: Images of a step over all processes, for the images per second.
        phase: The phase whose steps these are, which every line of metrics.jsonl names if there are several.
        shown: Whether the terminal shows the progress and the lines.
    """

    def __init__(
        self,
        folder: Path,
        accelerator: Accelerator,
        max_steps: int | None,
        global_batch: int,
        phase: Phase | None = None,
        *,
        shown: bool = True,
    ):
        self.folder = folder
        several = phase is not None and phase.count > 1
        self._phase = {"phase": phase.number} if phase is not None and several else {}
        self.accelerator = accelerator
        self.main = accelerator.is_main_process
        self.progress = ProgressDisplay(
            phase.name if phase is not None and several else "training",
            max_steps,
            unit="steps",
            images_per_unit=global_batch,
            shown=self.main and shown,
        )
        self.started = time.monotonic()
        self._advances: list[tuple[int, float]] = []  # steps and times of the first call of `advance` and of the last

    def advance(self, step: int) -> None:
        """Update the progress bar to `step` completed steps."""
        self.progress(step)
        self._advances = [*self._advances[:1], (step, time.monotonic())]

    def duration(self) -> tuple[int, float]:
        """Return the number of steps that this process has seen, and the seconds from the first to the last."""
        if not self._advances:
            return 0, 0.0
        (first, began), (last, ended) = self._advances[0], self._advances[-1]
        return last - first, ended - began

    def metrics(self, step: int, values: Mapping[str, float | str], *, kind: str) -> None:
        """Write one line of metrics.jsonl, and the same values to the trackers under `kind/`."""
        if not self.main:
            return
        line = {
            "step": step,
            **self._phase,
            "kind": kind,
            "seconds": round(time.monotonic() - self.started, 3),
            **values,
        }
        with open(self.folder / METRICS, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        numbers = {f"{kind}/{name}": value for name, value in values.items() if isinstance(value, int | float)}
        self.accelerator.log(numbers, step=step)

    def rewind(self, step: int) -> None:
        """Remove the lines of metrics.jsonl after `step`, which a run that resumes there writes again."""
        path = self.folder / METRICS
        if not self.main or not path.is_file():
            return
        lines = path.read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if _step_of(line) <= step]
        if len(kept) < len(lines):
            with writing(path) as temporary:
                temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")

    def print_line(self, text: str) -> None:
        """Print a line above the progress bar."""
        if self.main:
            self.progress.print_line(text)

    def print_summary(self, step: int, values: Mapping[str, float]) -> None:
        """Print the most important values of a log line in one line."""
        parts = [f"{_word(name)} {values[name]:.4g}" for name in _SHOWN if name in values]
        self.print_line(f"step {step}: {', '.join(parts)}, {values['images_per_second']:.1f} images/s")

    def changes(self, step: int, changed: Mapping[str, tuple[str, str]]) -> None:
        """Write the settings that a resumed run has from `step` on to the terminal, metrics.jsonl and history.jsonl.

        Args:
            step: The number of steps done.
            changed: JSON values before and after, by key; `(not set)` for a key that is absent.
        """
        for key, (before, after) in changed.items():
            self.print_line(f"from step {step}: {key} {before} -> {after}")
            self.metrics(step, {"setting": key, "from": before, "to": after}, kind="change")
        if self.main and changed:
            changes = {key: {"from": _value(before), "to": _value(after)} for key, (before, after) in changed.items()}
            time_now = datetime.now(timezone.utc).isoformat(timespec="seconds")
            with open(self.folder / HISTORY, "a", encoding="utf-8") as file:
                file.write(json.dumps({"time": time_now, "step": step, "changes": changes}) + "\n")

    def finished(self, step: int) -> None:
        """Record in metrics.jsonl that the run has ended and that its model is written."""
        self.metrics(step, {}, kind=_FINISHED)

    def warn(self, step: int, name: str, text: str) -> None:
        """Write a warning to the terminal and to metrics.jsonl."""
        self.print_line(f"warning at step {step}: {text}")
        self.metrics(step, {"alarm": name, "message": text}, kind="alarm")

    def image(self, step: int, name: str, tag: str, image: Image.Image) -> None:
        """Save an image as samples/`name`, and give it to the trackers under `tag`."""
        if self.main:
            folder = self.folder / "samples"
            folder.mkdir(exist_ok=True)
            image.save(folder / name)
            log_image(self.accelerator, tag, image, step)


def finished_step(folder: Path) -> int | None:
    """Return the step at which a run directory's run was finished; None for a run that is not, or was lengthened."""
    path = folder / METRICS
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    last = lines[-1] if lines else ""
    return int(_step_of(last)) if f'"kind": "{_FINISHED}"' in last and _step_of(last) < math.inf else None


def _word(name: str) -> str:
    """Return the name of a shown value without what it is a mean of."""
    return name.removesuffix("_loss").removesuffix("_per_latent")


def _value(text: str) -> Any:
    """Return a JSON value, or the text if it is not JSON."""
    try:
        return json.loads(text)
    except ValueError:
        return text


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
