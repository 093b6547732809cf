"""Row 12: a part of a checkpoint is missing when its run resumes.

A file that the manifest names (one after the other), or a key of the state in a checkpoint whose manifest agrees with
its files: as the only checkpoint, the run must end with status 2 and name the part; with an older one, a damaged one
must be named and the older one used. Nothing may start anew or load silently.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

from trials import Trial, arguments, make_images, make_recipe

from ldm_ae.io.files import sha256, write_json
from ldm_ae.io.manifests import MANIFEST
from ldm_ae.training.checkpoints.state import KEYS
from runs import run


def main() -> int:
    """Run it from the command line."""
    options = arguments(__doc__, trials=0).parse_args()
    trial = Trial(12, "a missing part of a checkpoint", "named; the run resumes from an older checkpoint or ends")
    with tempfile.TemporaryDirectory() as folder:
        try_all(trial, Path(folder), options.trials or None)
    return trial.finish(options.json)


def try_all(trial: Trial, root: Path, limit: int | None) -> None:
    """Count every missing part, or the first `limit`."""
    recipe = make_recipe(root / "recipe.yaml", make_images(root / "images", 8), max_steps=4, checkpoint_every=2)
    original = root / "original"
    assert run(["train", "--config", str(recipe), "--out", str(original)], root / "log") == [0]
    newest = original / "checkpoints" / "step-00000004"
    names = sorted(json.loads((newest / MANIFEST).read_text())["files"])
    parts = [("file", name) for name in [*names, MANIFEST]] + [("key", key) for key in KEYS]
    for number, (kind, name) in enumerate(parts[:limit]):
        for alone in (True, False):
            out, log = root / f"run-{number}-{alone}", root / f"log-{number}-{alone}"
            shutil.copytree(original, out)
            if alone:
                shutil.rmtree(out / "checkpoints" / "step-00000002")
            remove(out / "checkpoints" / "step-00000004", kind, name)
            [status] = run(
                ["train", "--config", str(recipe), "--out", str(out), "--training.max_steps", "5"], log
            )  # fmt: skip
            words = log.read_text()
            named = name in words and "step-00000004" in words
            # A key is missing in a checkpoint that agrees with its manifest: nobody's disk did that, so the run ends.
            if alone or kind == "key":
                held = named and status == 2 and "Traceback" not in words
            else:
                held = named and status == 0 and "resuming from step-00000002" in words
            trial.count(held, f"{kind} {name}, the only checkpoint: {alone}: status {status}: {words[-500:]}")
            shutil.rmtree(out)


def remove(checkpoint: Path, kind: str, name: str) -> None:
    """Take away a file, or a key of the state with a manifest that agrees."""
    if kind == "file":
        (checkpoint / name).unlink()
        return
    state = checkpoint / "state.json"
    content = json.loads(state.read_text())
    del content[name]
    write_json(state, content)
    manifest = json.loads((checkpoint / MANIFEST).read_text())
    manifest["files"]["state.json"] = {"bytes": state.stat().st_size, "sha256": sha256(state)}
    write_json(checkpoint / MANIFEST, manifest)


if __name__ == "__main__":
    sys.exit(main())
