"""Train the shipped models on a GPU that is lent for minutes, and run the GPU benchmarks; it ends in time.

    python scripts/lease/gpu_lease.py --images PHOTOS --out LEASE --minutes 12
    python scripts/lease/gpu_lease.py --images PHOTOS --out LEASE --minutes 12 --plan    # print what it would do
    python scripts/lease/gpu_lease.py --images PHOTOS --out REHEARSAL --rehearse         # tiny networks, on a CPU

The table `gpu_lease.yaml` lists the benchmarks and the phases of training. A phase trains for its share of the time
that is left when it begins, without the time that a start takes, which the phase before has measured. The trainer ends
it (`training.max_minutes`) with a falling learning rate. A phase that is late is stopped by SIGTERM, which saves. After
each phase, LEASE/models/NAME is its model in half precision, and LEASE/lease.md has the figures so far.

A part that fails is reported, and the exit status is then 1; the other parts run all the same. Rerun the same command
to continue: finished parts are kept, and an interrupted phase resumes. A plan of several leases has `--total-minutes`;
on another machine, `--resume` takes the results of the lease before. `--home` packs the results for a machine that
returns a few files of limited size.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from lease_results import (
    REPORT,
    STATE,
    import_ahead,
    in_words,
    last_figures,
    pack,
    report,
    trained,
    unpack,
    write_half,
)  # fmt: skip
from lease_table import TABLE, Benchmark, Phase, Table

from ldm_ae.core.errors import UserError, exit_status, reason, reportable
from ldm_ae.io.files import clear_leftovers, make_folder, read_json, write_json, writing

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
LEAST_SECONDS = 5.0
"""Seconds of training for which a phase is started."""
GRACE_SECONDS = 20.0
"""Seconds that a process has to save after SIGTERM."""
REHEARSAL = {"start_seconds": 8.0, "closing_seconds": 5.0}
"""The table's seconds in a rehearsal."""
STOPPED = 128 + signal.SIGTERM


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument("--images", type=Path, required=True, help="folder of training photos")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results; an earlier lease is continued")
    parser.add_argument("--minutes", type=float, help="minutes after which this command has ended (12; rehearsal: 1.5)")
    parser.add_argument("--total-minutes", type=float, help="minutes of a plan of several leases, together")
    parser.add_argument("--resume", type=Path, metavar="EARLIER", help="start from --out or --home of another lease")
    parser.add_argument("--home", type=Path, help="also pack the results into this folder, the most important first")
    parser.add_argument("--home-megabytes", type=float, default=1000, help="size of the packed files (%(default)s)")
    parser.add_argument("--part-megabytes", type=float, default=1000, help="size of a packed file (%(default)s)")
    parser.add_argument("--transfer-megabytes", type=float, default=300, help="limit of the photos (%(default)s)")
    parser.add_argument("--table", type=Path, default=TABLE, help="benchmarks and phases (gpu_lease.yaml)")
    parser.add_argument("--plan", action="store_true", help="check and print the plan, and do nothing")
    parser.add_argument("--rehearse", action="store_true", help="rehearse on a CPU with tiny networks")
    return parser


class Lease:
    """One lease: its clock, its parts, and their state in lease.json.

    Args:
        options: Those of the command line.
        table: Benchmarks and phases.
        started: When the command started, on the monotonic clock.
    """

    def __init__(self, options: argparse.Namespace, table: Table, started: float):
        self.options, self.table, self.out = options, table, options.out
        path = self.out / STATE
        self.state: dict[str, Any] = read_json(path) if path.is_file() else {"used_minutes": 0.0, "parts": {}}
        self.parts: dict[str, dict[str, Any]] = self.state["parts"]
        self.start_seconds = table.start_seconds
        """Seconds that a phase takes beside its training."""
        minutes = options.minutes or (1.5 if options.rehearse else 12.0)
        self._started, self._used = started, self.state["used_minutes"]
        left = minutes if options.total_minutes is None else options.total_minutes - self._used
        self.ends = started + 60 * minutes - table.closing_seconds
        """When the last part must have ended, on the monotonic clock."""
        self.plan_ends = started + 60 * left - table.closing_seconds
        """The same if the lease were long enough for all of the plan."""
        self.waiting = [phase for phase in table.phases if not self.is_done(phase.name)]
        """The phases among which the time is divided."""
        self.left_out: list[str] = []
        """The results that had no room in `--home`."""

    def is_done(self, name: str) -> bool:
        """Return whether a part has finished."""
        return self.parts.get(name, {}).get("status") == "done"

    def work(self) -> None:
        """Do every part that is not done. A failure is recorded, and the next part begins."""
        threading.Thread(target=import_ahead, daemon=True).start()
        for benchmark in self.table.benchmarks:
            if not self.is_done(benchmark.name):
                self._attempt(benchmark.name, partial(self._measure, benchmark))
        while self.waiting:
            self._attempt(self.waiting[0].name, partial(self._train, self.waiting[0]))
            self.waiting.pop(0)

    def _attempt(self, name: str, do: Callable[[], None]) -> None:
        """Do a part. An error of any kind fails this part alone."""
        try:
            do()
        except Exception as error:  # noqa: BLE001 - it is reported, and fails the command
            if reportable(error) is None:
                traceback.print_exc()
            self._note(name, status="failed", reason=f"{type(error).__name__}: {reason(error)}")
        finally:
            self._bring_home()

    def _bring_home(self) -> None:
        """Pack the results so far, where `--home` asks for it."""
        options = self.options
        if options.home is not None:
            self.left_out = pack(
                self.out, options.home, [phase.name for phase in self.table.phases],
                megabytes=options.home_megabytes, part_megabytes=options.part_megabytes,
            )  # fmt: skip

    def failures(self) -> list[str]:
        """Return the names of the parts that failed and, at the end of the plan, of those that did not finish."""
        bad = ["failed"] if self.plan_ends > self.ends + 1 else ["failed", "stopped", "not started"]
        return [name for name, part in self.parts.items() if part.get("status") in bad]

    def _note(self, name: str, **values: Any) -> None:
        """Record values of a part, print its status, and write the state and the report."""
        self.parts[name] = self.parts.get(name, {}) | values
        self.state["used_minutes"] = self._used + (time.monotonic() - self._started) / 60
        write_json(self.out / STATE, self.state)
        with writing(self.out / REPORT) as temporary:
            temporary.write_text("\n".join([*report(self.out, self.state), ""]), encoding="utf-8")
        print(f"{self.state['used_minutes']:.2f} minutes: {name}: {in_words(self.parts[name])}", file=sys.stderr)

    def _log(self, name: str) -> Path:
        return self.out / "logs" / f"{name}.log"

    def _note_end(self, name: str, status: int, **values: Any) -> None:
        """Record how a process ended; a failure is explained by the last line of its log."""
        lines = [line for line in self._log(name).read_text(errors="replace").splitlines() if line.strip()]
        last = lines[-1][:300] if lines else "it printed nothing"
        if status == STOPPED:
            self._note(name, status="stopped", reason="its time was over", **values)
        elif status:
            self._note(name, status="failed", reason=f"exit status {status}: {last}", **values)
        else:
            self._note(name, status="done", reason=None, **values)

    # ------------------------------------------------------------------------------------------------------- the parts

    def _measure(self, benchmark: Benchmark) -> None:
        """Run a benchmark; its table is OUT/benchmarks/NAME.md."""
        arguments = benchmark.rehearsal if self.options.rehearse else benchmark.arguments
        if arguments is None:
            self._note(benchmark.name, status="skipped", reason="it needs an accelerator")
            return
        command = [sys.executable, str(BENCHMARKS / f"{benchmark.name}.py"), *arguments]
        limit = min(60 * benchmark.minutes, self.ends - time.monotonic())
        table = self.out / "benchmarks" / f"{benchmark.name}.md"
        self._note_end(benchmark.name, execute(command, self._log(benchmark.name), limit, output=table))

    def run_folder(self, name: str) -> Path:
        """Return the run directory of a phase."""
        return self.out / "runs" / name

    def minutes_for(self, phase: Phase) -> float:
        """Return the minutes of training of a phase: those that it began with, or else its share of the time left."""
        began = self.parts.get(phase.name, {}).get("minutes")
        if began is not None and (self.run_folder(phase.name) / "checkpoints").is_dir():
            return float(began)
        part = phase.share / sum(other.share for other in self.waiting)
        seconds = (self.plan_ends - time.monotonic()) * part
        return (seconds - min(self.start_seconds, seconds / 2)) / 60  # one slow start must not end the plan

    def start_of(self, phase: Phase) -> Path | None:
        """Return the model that a phase starts from: that of the phase `after` or, if it has none, of one before."""
        before = {other.name: other.after for other in self.table.phases}
        name = phase.after
        while name is not None:
            for model in (self.run_folder(name) / "model", self.out / "models" / name):
                if model.is_dir():
                    return model
            name = before[name]
        return None

    def arguments(self, phase: Phase, minutes: float) -> list[str]:
        """Return the arguments of `ldm-ae train` for a phase."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        settings: dict[str, Any] = {
            "data.train": str(self.options.images),
            "data.workers": cores - 1,
            "data.cache_megabytes": memory // 2**21 // max(cores - 1, 1),  # half of the memory for all workers
            "training.compile": not self.options.rehearse and minutes >= self.table.compile_from_minutes,
            "training.max_steps": 10_000_000,  # time ends the phase
            "training.max_minutes": round(minutes, 4),
            "optimizer.schedule": "constant",
            "optimizer.cooldown_steps": 0,
            "optimizer.cooldown_minutes": round(minutes * phase.cooldown, 4),
            "discriminator_optimizer.schedule": "constant",
            "discriminator_optimizer.cooldown_steps": 0,
        }
        settings |= self.table.settings | phase.settings
        if self.options.rehearse:
            settings |= self.table.rehearsal | phase.rehearsal
        if phase.after is not None:
            settings["model.init_args.pretrained"] = str(self.start_of(phase) or self.run_folder(phase.after) / "model")
        words = ["--config", phase.recipe, "--out", str(self.run_folder(phase.name))]
        for key, value in settings.items():
            words += [f"--{key}", value if isinstance(value, str) else json.dumps(value)]
        return words

    def _train(self, phase: Phase) -> None:
        """Train a phase, and write its model in half precision."""
        name, start = phase.name, self.start_of(phase)
        minutes, limit = self.minutes_for(phase), self.ends - time.monotonic()
        if min(60 * minutes, limit) < LEAST_SECONDS:
            words = f"{max(60 * minutes, 0):.0f} seconds for it, and {max(limit, 0):.0f} of this lease"
            self._note(name, status="not started", reason=f"too little time: {words}")
            return
        if phase.after is not None and start is None:
            self._note(name, status="not started", reason=f"{phase.after} has no model to start from")
            return
        self._note(name, status="running", reason=None, minutes=minutes, start=None if start is None else str(start))
        if not (self.run_folder(name) / "checkpoints").is_dir():  # what came home of an unfinished run
            shutil.rmtree(self.run_folder(name), ignore_errors=True)
        command = [sys.executable, "-m", "ldm_ae.cli", "train", *self.arguments(phase, minutes)]
        began, before = time.monotonic(), trained(self.run_folder(name))[1]
        status = STOPPED  # if a signal ends this command
        try:
            status = execute(command, self._log(name), limit)
        finally:
            run = self.run_folder(name)
            if (run / "model").is_dir():
                write_half(run, self.out / "models" / name)
            steps, seconds = trained(run)
            figures = {"steps": steps, "trained_minutes": seconds / 60, **last_figures(run)}
            if status == 0:
                self.start_seconds = figures["start_seconds"] = time.monotonic() - began - (seconds - before)
            self._note_end(name, status, **figures)


def execute(command: Sequence[str], log: Path, seconds: float, *, output: Path | None = None) -> int:
    """Run a command for at most so many seconds; then, or if this process is interrupted, stop it by SIGTERM.

    Args:
        command: The command.
        log: The file that its outputs are appended to.
        seconds: Its time.
        output: A file for its standard output.

    Returns:
        Its exit status; `STOPPED` if its time was over.
    """
    for path in filter(None, (log, output)):
        path.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as errors, open(output or log, "ab" if output is None else "wb") as lines:
        process = subprocess.Popen(command, stdout=lines, stderr=errors, stdin=subprocess.DEVNULL)
        try:
            return process.wait(max(seconds, 0))
        except subprocess.TimeoutExpired:
            return STOPPED
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(GRACE_SECONDS)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


def print_plan(lease: Lease) -> None:
    """Check the settings of every phase, and print what the lease does."""
    from ldm_ae.training.configuration.parsing import config_parser, parse_config

    parser = config_parser()
    for benchmark in lease.table.benchmarks:
        if lease.is_done(benchmark.name) or (lease.options.rehearse and benchmark.rehearsal is None):
            continue
        print(f"{benchmark.name}: at most {benchmark.minutes:g} minutes")
        lease.plan_ends -= 60 * benchmark.minutes
    for phase in lease.waiting:
        minutes = lease.minutes_for(phase)
        arguments = lease.arguments(phase, max(minutes, LEAST_SECONDS / 60))
        if parse_config(arguments, parser).phases:
            raise UserError(f"phase {phase.name}: recipe {phase.recipe} has phases; give a recipe of one phase each")
        verdict = ", too little" * (60 * minutes < LEAST_SECONDS)
        print(f"{phase.name}: {minutes:.2f} minutes of training{verdict}\n  ldm-ae train {shlex.join(arguments)}")


def check_images(images: Path, megabytes: float) -> None:
    """Raise `UserError` if the photos are not in a folder, or are larger than what can be transferred."""
    if not images.is_dir():
        raise UserError(f"--images {images} is not a folder")
    found = sum(path.stat().st_size for path in images.rglob("*") if path.is_file()) / 1e6
    if found > megabytes:
        raise UserError(f"{images} has {found:.0f} MB, more than --transfer-megabytes {megabytes:g}; give fewer photos")


def run(options: argparse.Namespace, started: float) -> int:
    """Carry out a lease, or print its plan; return the exit status."""
    table = Table.read(options.table)
    check_images(options.images, options.transfer_megabytes)
    if not (options.rehearse or options.plan):
        from ldm_ae.models import pick_device

        if pick_device().type == "cpu":
            raise UserError("this machine has no accelerator; add --rehearse to rehearse on the CPU")
    if options.resume is not None and not (options.out / STATE).exists():
        if options.plan:
            raise UserError("--plan writes nothing, and --resume copies; give --plan alone")
        unpack(options.resume, options.out)
    lease = Lease(options, replace(table, **REHEARSAL) if options.rehearse else table, started)
    if options.plan:
        print_plan(lease)
        return 0
    clear_leftovers(make_folder(options.out))
    lease.work()
    print((options.out / REPORT).read_text(encoding="utf-8"))
    if lease.left_out:
        print(f"too large for --home-megabytes {options.home_megabytes:g}: {', '.join(lease.left_out)}")
    failed = lease.failures()
    for name in failed:
        print(f"gpu_lease: {name}: {in_words(lease.parts[name])}", file=sys.stderr)
    return 1 if failed else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status, as for `ldm-ae`; 1 if a part failed."""
    started = time.monotonic()
    options = build_parser().parse_args(arguments)

    def terminate(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        return exit_status(lambda: run(options, started), "gpu_lease")
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    sys.exit(main())
