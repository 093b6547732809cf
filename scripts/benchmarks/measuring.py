"""The measuring method of every benchmark here.

Each variant runs in its own process. After a warm-up they take turns, one call each per round, starting with another
one each round; the result is the median over rounds of the ratio of two times of the same round. A machine that is busy
for a while slows both, whereas measuring one variant after the other would include that. Peak memory is that of the
calls, relative to the resident memory once models and inputs exist.

The list of variants depends on the speed of bfloat16. The first process measures it and passes it on to the processes
of the variants: measurements of their own could contradict it. These processes do not measure the placement either.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch

from ldm_ae.core.environment import git_commit, package_versions
from ldm_ae.core.precision import SPEED_VARIABLE, bfloat16_speed, machine_name
from ldm_ae.models import pick_device

MEMORY_INFO, RESET_PEAK = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Variant(NamedTuple):
    """One way to do the work."""

    name: str
    build: Callable[[], Callable[[], object]]
    """Makes models and inputs and returns the function to time; its `settle`, if any, runs untimed after each call."""
    against: str | None = None
    """The name of the variant that it is compared with."""
    cost: bool = False
    """Report time / time of the other (an upper target) instead of the speed-up, its inverse (a lower target)."""
    others: bool = False
    """Whether the variant is another library's method; the target is then the lower bound of its cost."""
    target: float | None = None
    images: int | None = None
    """Number of images of one call, to report images per second."""


def arguments(description: str | None, *, runs: int = 9) -> argparse.ArgumentParser:
    """Return a parser with the options that every benchmark has."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=runs, help=f"timed rounds (default {runs})")
    parser.add_argument("--device", default="auto", help="auto (an accelerator if available), cpu, cuda, ...")
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="VARIANT",
        help="measure only these variants (all measured variants are in memory at once)",
    )
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="one thread, and processor time instead of wall-clock time, for a busy machine",
    )
    # The option with which a variant's own process is started.
    parser.add_argument("--serve", metavar="VARIANT", help=argparse.SUPPRESS)
    return parser


def run(title: str, variants: Sequence[Variant], options: argparse.Namespace) -> None:
    """Measure and print a Markdown table; in a variant's process, serve its calls."""
    device = pick_device(options.device)
    clock = time.perf_counter
    if options.cpu_time:
        torch.set_num_threads(1)
        clock = time.process_time
    if options.serve is not None:
        serve(next(v for v in variants if v.name == options.serve), device, clock)
        return
    if options.only:
        variants = [v for v in variants if v.name in options.only]
    times, memory = interleaved(variants, options.runs, device)
    unit = ", processor time of one thread" if options.cpu_time else ""
    print(f"### {title}{unit}\n\n{environment(device)}\n\n{table(variants, times, memory)}", flush=True)


def interleaved(
    variants: Sequence[Variant], runs: int, device: torch.device
) -> tuple[dict[str, list[float]], dict[str, dict[str, int]]]:
    """Return the seconds of each call in rounds of one call each, and memory in MiB, by variant."""
    processes = {v.name: _start(v.name, device) for v in variants}
    times: dict[str, list[float]] = {name: [] for name in processes}
    names = list(processes)
    for name in names:
        _ask(processes[name], "warm up")
    for i in range(runs):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            times[name].append(_ask(processes[name], "call")["seconds"])
    memory = {name: _ask(process, "memory") for name, process in processes.items()}
    for process in processes.values():
        process.communicate()
    return times, memory


def serve(variant: Variant, device: torch.device, clock: Callable[[], float]) -> None:
    """Build the variant, then execute the request in each line of the standard input; answer with one line of JSON."""
    torch.manual_seed(0)
    call = variant.build()
    before = start_peak_memory(device)
    for line in sys.stdin:
        answer: dict[str, float] = {}
        if line == "memory\n":
            answer = {"before": before >> 20, "peak": peak_memory(device) >> 20}
        elif line == "call\n":
            answer = {"seconds": _timed(call, device, clock)}
        else:  # Call it twice: optimizers allocate in their first call, allocators settle in the second.
            _timed(call, device, clock), _timed(call, device, clock)
        print(json.dumps(answer), flush=True)


def table(variants: Sequence[Variant], times: dict[str, list[float]], memory: dict[str, dict[str, int]]) -> str:
    """Return median seconds, ratios and memory as a Markdown table."""
    lines = ["| variant | median (min-max), s | images/s | ratio, median (min-max) | target | peak memory, MiB |"]
    lines.append("|---|---|---|---|---|---|")
    for v in variants:
        own = times[v.name]
        rate = f"{v.images / median(own):.2f}" if v.images else ""
        ratio, target = "", ""
        if v.against is not None:
            pairs = list(zip(own, times[v.against], strict=True))
            ratios = [mine / other if v.cost else other / mine for mine, other in pairs]
            words = "time of" if v.cost else "speed of"
            ratio = f"**{median(ratios):.2f}** × {words} {v.against} ({min(ratios):.2f}-{max(ratios):.2f})"
            if v.target is not None:
                at_most = v.cost and not v.others
                met = median(ratios) <= v.target if at_most else median(ratios) >= v.target
                target = f"{'<=' if at_most else '>='} {v.target}: {'met' if met else 'not met'}"
        peak = f"{memory[v.name]['peak']} ({memory[v.name]['before']} before)"
        spread = f"{median(own):.3f} ({min(own):.3f}-{max(own):.3f})"
        lines.append(f"| {v.name} | {spread} | {rate} | {ratio} | {target} | {peak} |")
    return "\n".join(lines)


def environment(device: torch.device) -> str:
    """Return one line that describes the environment of the measurement."""
    versions = package_versions()
    speed = f"bf16 at {bfloat16_speed(device):.2g} × fp32"
    packages = ", ".join(f"{name} {versions[name]}" for name in ("torch", "diffusers", "accelerate", "lpips"))
    return f"{machine_name(device)}, {speed}; Python {platform.python_version()}, {packages}; commit {git_commit()}"


def quiet_lpips(net: str) -> torch.nn.Module:
    """Return `lpips.LPIPS` with its own channel weights and a random trunk, without its warnings."""
    import lpips

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return lpips.LPIPS(net=net, pnet_rand=True, verbose=False)


def copy_trunk(source: torch.nn.Module, target: torch.nn.Module) -> None:
    """Copy the weights of the convolutions of `source` to those of `target`, in order."""
    ours, theirs = ([m for m in part.modules() if isinstance(m, torch.nn.Conv2d)] for part in (source, target))
    for mine, other in zip(ours, theirs, strict=True):
        other.load_state_dict(mine.state_dict())


def _timed(call: Callable[[], object], device: torch.device, clock: Callable[[], float]) -> float:
    started = clock()
    call()
    if device.type != "cpu":
        torch.accelerator.synchronize()
    seconds = clock() - started
    if (settle := getattr(call, "settle", None)) is not None:
        settle()
    return seconds


def _start(name: str, device: torch.device) -> subprocess.Popen[str]:
    command = [sys.executable, *sys.argv, "--serve", name]
    environment = os.environ | {SPEED_VARIABLE: repr(bfloat16_speed(device))}
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _ask(process: subprocess.Popen[str], request: str) -> dict[str, Any]:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(request + "\n")
    process.stdin.flush()
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"the process of a variant ended with exit status {process.wait()}; its output is above")
    return json.loads(line)


def start_peak_memory(device: torch.device) -> int:
    """Return the bytes in use; the peak counts from here."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    RESET_PEAK.write_text("5")  # Linux
    return _status_bytes("VmRSS")


def peak_memory(device: torch.device) -> int:
    """Return the largest number of bytes in use since `start_peak_memory`."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _status_bytes("VmHWM")


def _status_bytes(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", MEMORY_INFO.read_text())
    assert found is not None
    return int(found[1]) * 1024
