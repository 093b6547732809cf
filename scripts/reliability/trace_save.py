"""Row 3: the system calls of a training run's saves, as strace shows them.

For every checkpoint: each file is written under a temporary name and flushed, the manifest is written after all others
are flushed, the folder is flushed, renamed, and the folder around it flushed; nothing older is removed before that.
Needs `strace` 5.3 or newer.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from trials import Trial, arguments, make_images, make_recipe

CALLS = "rename,renameat,renameat2,fsync,fdatasync,unlink,unlinkat,rmdir,write,pwrite64"


class Event(NamedTuple):
    """One call that matters, on a path below the run directory."""

    kind: str
    """write, fsync, rename or remove."""
    path: str
    target: str = ""


def main() -> int:
    """Run it from the command line."""
    options = arguments(__doc__, trials=6).parse_args()
    trial = Trial(3, "strace of saves", "temporary name, fsync, manifest last, rename, fsync of the folder, pruning")
    if shutil.which("strace") is None:
        trial.count(False, "strace is not installed")
        return trial.finish(options.json)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        recipe = make_recipe(
            root / "recipe.yaml", make_images(root / "images", 8), max_steps=2 * options.trials, checkpoint_every=2,
            keep_checkpoints=1,
        )  # fmt: skip
        command = [sys.executable, "-m", "ldm_ae.cli", "train", "--config", str(recipe), "--out", str(root / "run")]
        command += ["--data.validation_images", "0"]
        strace = ["strace", "-f", "--seccomp-bpf", "-y", "-qq", "-s", "0", "-e", f"trace={CALLS}"]
        subprocess.run([*strace, "-o", str(root / "trace"), *command], check=True, capture_output=True)
        events = list(read(root / "trace", root / "run"))
        for number in range(1, options.trials + 1):
            wrong = check(events, f"step-{2 * number:08d}")
            trial.count(not wrong, f"checkpoint {number}: {wrong}")
    trial.figures["calls seen"] = len(events)
    return trial.finish(options.json)


def read(trace: Path, run: Path) -> list[Event]:
    """The events of a trace, paths relative to the run directory. Calls cut in two by other threads are joined."""
    events: list[Event] = []
    pending: dict[str, str] = {}
    for line in trace.read_text(errors="replace").splitlines():
        thread, _, call = line.partition(" ")
        call = call.strip()
        if call.endswith("<unfinished ...>"):
            pending[thread] = call.removesuffix("<unfinished ...>")
            continue
        if (resumed := re.match(r"<\.\.\. \w+ resumed>(.*)", call)) is not None:
            call = pending.pop(thread, "") + resumed[1]
        if str(run) not in call or re.search(r"= -1 ", call):
            continue
        names = [path.removeprefix(f"{run}/") for path in re.findall(rf'{re.escape(str(run))}[^">]*', call)]
        kind = call.partition("(")[0]
        if kind in ("write", "pwrite64"):
            events.append(Event("write", names[0]))
        elif kind in ("fsync", "fdatasync"):
            events.append(Event("fsync", names[0]))
        elif kind.startswith("rename"):
            events.append(Event("rename", names[0], names[-1]))
        elif kind in ("unlink", "unlinkat", "rmdir"):
            events.append(Event("remove", _removed(call, names, run)))
    return events


def _removed(call: str, names: list[str], run: Path) -> str:
    """unlinkat names a folder by its descriptor and a file in it by its name."""
    inner = re.search(r'unlinkat\(\d+<[^>]*>, "([^"]*)"', call)
    return f"{names[0]}/{inner[1]}" if inner is not None and not inner[1].startswith(str(run)) else names[-1]


def check(events: list[Event], name: str) -> list[str]:
    """What is out of order in the save of one checkpoint; empty if nothing is."""
    renames = [i for i, e in enumerate(events) if e.kind == "rename" and e.target == f"checkpoints/{name}"]
    if len(renames) != 1:
        return [f"{len(renames)} renames to {name}"]
    commit = renames[0]
    temporary = events[commit].path
    wrong = []
    inside = [(i, e) for i, e in enumerate(events) if e.path.startswith(temporary)]
    # Files get their names in the folder by renames, too: what counts is the name that a file ends with.
    final = {e.path: e.target for i, e in inside if e.kind == "rename" and i < commit}
    inside = [(i, e._replace(path=final.get(e.path, e.path))) for i, e in inside]
    written = {e.path for _, e in inside if e.kind == "write"}
    manifest = [i for i, e in inside if e.kind == "write" and e.path.endswith("/MANIFEST.json")]
    if not manifest:
        return ["no manifest was written"]
    for path in written:
        last_write = max(i for i, e in inside if e.kind == "write" and e.path == path)
        synced = [i for i, e in inside if e.kind == "fsync" and e.path == path and i > last_write]
        if not synced:
            wrong.append(f"{path} was not flushed after its last write")
        elif not path.endswith("/MANIFEST.json") and min(synced) > min(manifest):
            wrong.append(f"{path} was flushed after the manifest was written")
        if last_write > commit:
            wrong.append(f"{path} was written after the rename")
    if not any(e.kind == "fsync" and e.path == temporary and i < commit for i, e in inside):
        wrong.append("the folder was not flushed before its rename")
    after = next((i for i, e in enumerate(events) if i > commit and e == Event("fsync", "checkpoints")), None)
    if after is None:
        return [*wrong, "the folder around it was not flushed after the rename"]
    early = [
        e.path for e in events[min(i for i, _ in inside) : after]
        if e.kind == "remove" and e.path.startswith("checkpoints/step-")
    ]  # fmt: skip
    return wrong + [f"{path} was removed before the new checkpoint counted" for path in early]


if __name__ == "__main__":
    sys.exit(main())
