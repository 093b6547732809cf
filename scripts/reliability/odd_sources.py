"""Encodes data sets that are odd as a whole: texts, names, links, tars, tables; each image is right or accounted for.

    python scripts/reliability/odd_sources.py

Each data set of `odd_data_sets.CASES` goes through `encode` and `inspect --json`. The trial compares the exit statuses;
the keys, captions, labels and class names in the index; the reasons of what is not used; and each line of the account,
which must be the same on the terminal, in `inspect` and in the index. A data set that must be refused leaves no store.
Further trials change a Parquet file under its old modification time, leave a class out of a validation set, and convert
names that are not text. Commands are forks of one process, so that imports are paid for once.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from odd_data_sets import CASES, Case, folder, picture, write, write_parquet
from samples import ldm_ae, make_samples
from trials import Trial, arguments

LONGEST = 120.0
"""Seconds of a command. One that opens a pipe would wait for ever."""
AS_ANYBODY = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search") if os.geteuid() == 0 else ()
"""Prefix that runs a command without root's permission to read every file."""
NAMES = (b"plain.jpg", b"back\\slash.jpg", b"caf\xe9.jpg", "größe.jpg".encode())
CLASS = b"gr\xfcn"
KEYS = {"gr\\xfcn/back\\slash", "gr\\xfcn/caf\\xe9", "gr\\xfcn/größe", "gr\\xfcn/plain"}
"""Of the images with these names in the folder of that class, without .jpg."""


Command = Callable[[Sequence[str], Path], int]
"""Runs `ldm-ae` with these words and what it prints in that file; its exit status."""


def fork(words: Sequence[str], log: Path) -> int:
    """Run a command in a fork of this process, which has done the imports, and kill it after `LONGEST`."""
    from runs import Run  # which takes torch's threads from the process that imports it

    return Run(words, log).wait(LONGEST)[0]


class Bench:
    """Runs the commands of one data set and counts what holds.

    Args:
        trial: Where it counts.
        name: Of the data set.
        model: What encodes.
        root: A new folder for the data set and its stores.
        command: What runs a command.
    """

    def __init__(self, trial: Trial, name: str, model: Path, root: Path, command: Command):
        self._trial, self._name, self._model, self.root, self._command = trial, name, model, root, command
        root.mkdir(parents=True)

    def expect(self, what: str, found: object, expected: object) -> None:
        """Count whether they are equal."""
        self._trial.count(found == expected, f"{self._name}: {what}: {found!r}, expected {expected!r}")

    def expect_lines(self, what: str, found: list[str], patterns: tuple[str, ...]) -> None:
        """Count whether each line is of one of the patterns, and each pattern has its line."""
        matched = len(found) == len(patterns) and all(
            sum(matches(line, pattern) for line in found) == 1 for pattern in patterns
        )
        self._trial.count(matched, f"{self._name}: {what}: {found!r}, expected {patterns!r}")

    def expect_reasons(self, what: str, found: Mapping[str, str], patterns: Mapping[str, str]) -> None:
        """Count whether the keys are equal, and each reason is of its pattern."""
        held = found.keys() == patterns.keys() and all(matches(found[key], patterns[key]) for key in found)
        self._trial.count(held, f"{self._name}: {what}: {dict(found)!r}, expected {dict(patterns)!r}")

    def run(self, *words: object, status: int = 0, unprivileged: bool = False) -> list[str]:
        """The lines that a command prints; its exit status is counted."""
        log = self.root / "log"
        log.unlink(missing_ok=True)
        if unprivileged:
            done = ldm_ae(*words, prefix=AS_ANYBODY)
            found, text = done.returncode, done.stdout + done.stderr
        else:
            found = self._command([str(word) for word in words], log)
            text = log.read_text(encoding="utf-8", errors="backslashreplace")
        self.expect(f"{words[0]}: status, with {text[-500:]}", found, status)
        return text.splitlines()

    def encode(self, images: object, store: str, *options: object, **expected: Any) -> list[str]:
        """The lines of `ldm-ae encode` with the mode of the posterior."""
        words = ("encode", self._model, images, self.root / store, "--latents", "mode")
        workers = () if "--workers" in options else ("--workers", 0)
        return self.run(*words, *workers, *options, **expected)

    def inspect(self, store: str) -> dict[str, Any]:
        """What `ldm-ae inspect --json` says, nothing if that is not a store."""
        lines = self.run("inspect", self.root / store, "--json")
        found: dict[str, Any] = json.loads("\n".join(lines)) if lines[:1] == ["{"] else {}
        self.expect("problems", found.get("problems"), [])
        return found

    def index(self, store: str) -> pa.Table:
        """The index as any Parquet reader sees it."""
        return pq.read_table(self.root / store / "index.parquet", use_threads=False)


def matches(text: str, pattern: str) -> bool:
    """Whether * in the pattern can be replaced so that it is the text."""
    return fnmatchcase(text, pattern.replace("[", "[[]").replace("?", "[?]"))


def column(rows: pa.Table, name: str) -> dict[str, Any]:
    """The values of the images that have one, by key."""
    found = zip(rows["key"].to_pylist(), rows[name].to_pylist(), strict=True)
    return {key: value for key, value in found if value not in (None, -1)}


def account_lines(lines: list[str]) -> list[str]:
    """From the first of the account to the one that counts captions and labels; empty if there is none."""
    first = [i for i, line in enumerate(lines) if line.startswith("source: ")]
    last = [i for i, line in enumerate(lines) if " images have a caption, " in line]
    return lines[first[0] : last[0] + 1] if first and last else []


def check_case(bench: Bench, case: Case) -> None:
    """Encode a data set and compare everything."""
    case.build(bench.root)
    images, *options = (word.format(root=bench.root) for word in (case.images, *case.options))
    if case.error:
        messages = bench.encode(images, "store", *options, status=2)
        patterns = tuple(line.format(root=bench.root) for line in case.error)
        bench.expect_lines("message", messages[-len(patterns) :], patterns)
        bench.expect("leaves a store", (bench.root / "store").exists(), False)
        return
    lines = account_lines(bench.encode(images, "store", *options, unprivileged=case.unprivileged))
    count = len(case.keys)
    bench.expect("first line", lines[:1] and lines[0].partition(" (")[0], f"source: {count + len(case.bad)} images")
    bench.expect_lines("account", lines[1:-1], tuple(line.format(root=bench.root) for line in case.account))
    last = f"{len(case.captions)} of {count} images have a caption, {len(case.labels)} a label"
    bench.expect("last line", lines[-1:], [last])
    found = bench.inspect("store")
    rows = bench.index("store")
    good = rows.filter(pc.equal(rows["status"], "ok"))
    bench.expect("keys", good["key"].to_pylist(), list(case.keys))
    bench.expect("captions", column(good, "caption"), dict(case.captions))
    bench.expect("labels", column(good, "label"), dict(case.labels))
    bench.expect_reasons("not usable", column(good, "error"), case.unusable)
    numbers = [found.get(name) for name in ("images", "captions", "labels", "classes")]
    bench.expect("inspect", numbers, [count, len(case.captions), len(case.labels), list(case.classes)])
    bench.expect_reasons("inspect, not usable", found.get("captions_or_labels_not_usable", {}), case.unusable)
    bench.expect_reasons("bad images", found.get("bad_images", {}), case.bad)
    check_account(bench, found.get("account", {}), rows, lines)


def check_account(bench: Bench, account: dict[str, Any], rows: pa.Table, lines: list[str]) -> None:
    """The account of `inspect` is that of the index, and each of its numbers is in a line of the terminal."""
    bench.expect("the index's account", json.loads((rows.schema.metadata or {})[b"ldm_ae.account"]), account)
    for kind in ("passed_over", "unmatched", "unusable"):
        for place, group in account.get(kind, {}).items():
            words = (f"{group['count']} ", place, *group["examples"])
            bench.expect(f"a line about {place}", any(all(word in line for word in words) for line in lines), True)


def check_changed_parquet(bench: Bench) -> None:
    """Other pictures and captions under the old name and modification time are what is encoded."""
    table = bench.root / "images" / "data" / "train-00000-of-00001.parquet"
    hashes = {}
    for number, store in enumerate(("first", "second")):
        write_parquet(table, 3 * number, text=pa.array([f"{number}{i}" for i in range(3)]))
        os.utime(table, (10**9, 10**9))
        bench.encode(bench.root / "images", store)
        hashes[store] = [sha256(picture(3 * number + i)).hexdigest() for i in range(3)]
        bench.expect(f"{store}: hashes", bench.index(store)["source_hash"].to_pylist(), hashes[store])
    text = "\n".join(bench.encode(bench.root / "images", "first"))
    bench.expect("the first store was complete", "is already complete" in text, False)
    bench.expect("the first store's hashes", bench.index("first")["source_hash"].to_pylist(), hashes["second"])
    bench.expect("its captions", bench.index("first")["caption"].to_pylist(), ["10", "11", "12"])
    text = "\n".join(bench.encode(bench.root / "images", "first"))
    bench.expect("nothing has changed", "is already complete" in text, True)
    bench.inspect("first")


def check_classes(bench: Bench) -> None:
    """A validation set without one class, by itself and with the training set's numbers."""
    folder("a/0.png", "b/1.png", "c/2.png")(bench.root)
    (bench.root / "images").rename(bench.root / "train")
    write(bench.root / "held", {"a/3.png": picture(3), "c/4.png": picture(4)})
    bench.encode(bench.root / "train", "stores/train")
    bench.inspect("stores/train")
    classes = bench.root / "stores" / "train" / "classes.json"
    bench.expect("classes.json", json.loads(classes.read_text()), ["a", "b", "c"])
    messages = bench.encode(bench.root / "held", "stores/other")
    bench.expect("numbers by itself", column(bench.index("stores/other"), "label"), {"a/3.png": 0, "c/4.png": 1})
    warning = f"note: class c is number 1 here and 2 in {classes.parent}; --classes {classes}*"
    notes = [line for line in messages if line.startswith("note: class ")]
    bench.expect_lines("warning", notes, (warning,))
    shutil.rmtree(bench.root / "stores" / "other")
    for store, file in (("held", classes.parent), ("text", bench.root / "names.txt")):
        write(bench.root, {"names.txt": "a\nb\nc\n"})
        bench.encode(bench.root / "held", f"stores/{store}", "--classes", file)
        bench.expect("numbers", column(bench.index(f"stores/{store}"), "label"), {"a/3.png": 0, "c/4.png": 2})
        bench.expect("names", bench.inspect(f"stores/{store}").get("classes"), ["a", "b", "c"])
    write(bench.root, {"short.txt": "a\nb\n"})
    short = ("--classes", bench.root / "short.txt")
    messages = bench.encode(bench.root / "held", "stores/short", *short, status=2)
    bench.expect_lines("a class that is missing", messages[-1:], ("*has no class c; add it at its end*",))
    bench.expect("leaves a store", (bench.root / "stores" / "short").exists(), False)
    bench.run("convert", bench.root / "stores" / "held", bench.root / "out", "--format", "lightningdit")
    bench.expect(
        "names in a conversion", json.loads((bench.root / "out" / "classes.json").read_text()), ["a", "b", "c"]
    )


def check_names(bench: Bench) -> None:
    """Names with backslashes and with bytes that are not UTF-8 through conversions, and back."""
    for number, name in enumerate(NAMES):
        write(bench.root / "images", {"next": picture(number), "next.txt": f"caption {number}"})
        place = os.fsencode(bench.root / "images") + b"/"
        os.makedirs(place + CLASS, exist_ok=True)
        os.rename(place + b"next", place + CLASS + b"/" + name)
        os.rename(place + b"next.txt", place + CLASS + b"/" + name.removesuffix(b".jpg") + b".txt")
    bench.encode(bench.root / "images", "store")
    found = bench.inspect("store")
    bench.expect("keys", set(bench.index("store")["key"].to_pylist()), {f"{key}.jpg" for key in KEYS})
    bench.expect("captions and labels", [found.get("captions"), found.get("labels")], [len(NAMES)] * 2)
    bench.expect("class", found.get("classes"), ["gr\\xfcn"])
    stems = {name.removesuffix(b".jpg") for name in NAMES}
    for kind, ending in (("kohya", b"_0024x0020_sd.npz"), ("musubi", b"_0024x0020_zi.safetensors")):
        arch = "sd" if kind == "kohya" else "zi"
        bench.run("convert", bench.root / "store", bench.root / kind, "--format", kind, "--arch", arch)
        place = os.fsencode(bench.root / kind) + (b"/" + CLASS if kind == "kohya" else b"")
        files = {name for name in os.listdir(place) if name.endswith(ending)}
        bench.expect(f"files of {kind}", files, {stem + ending for stem in stems})
    bench.run("convert", bench.root / "store", bench.root / "pixart", "--format", "pixart")
    listed = json.loads((bench.root / "pixart" / "InternData" / "data_info.json").read_text(encoding="utf-8"))
    bench.expect("paths of pixart", {item["path"] for item in listed}, {f"{key.replace('/', '_')}.png" for key in KEYS})
    bench.run("convert", bench.root / "store", bench.root / "dit", "--format", "lightningdit")
    bench.run("convert", bench.root / "dit", bench.root / "back", "--format", "store")
    for name in ("key", "caption", "label"):
        bench.expect(
            f"{name} of the way back", bench.index("back")[name].to_pylist(), bench.index("store")[name].to_pylist()
        )
    bench.inspect("back")


SEQUENCES = {
    "a Parquet file changed under its old time": check_changed_parquet,
    "a validation set without one class": check_classes,
    "names that are not text": check_names,
}
"""What takes several commands, by name."""


def run_trial(trial: Trial, model: Path, root: Path, names: list[str], command: Command) -> None:
    """The data sets of these names."""
    for number, name in enumerate(names):
        bench = Bench(trial, name, model, root / f"{number:02d}", command)
        try:
            if name in CASES:
                check_case(bench, CASES[name])
            else:
                SEQUENCES[name](bench)
        except OSError as error:  # what a command has not written
            trial.count(False, f"{name}: {error}")
    trial.figures["data sets"] = len(names)


def main() -> int:
    """The trial of row 7."""
    options = arguments(__doc__, trials=len(CASES) + len(SEQUENCES)).parse_args()
    trial = Trial(
        7,
        "odd data sets through encode, inspect and convert",
        "exact index and account, or refused with the file's name",
    )
    with tempfile.TemporaryDirectory() as name:
        samples = make_samples(Path(name) / "samples")
        run_trial(trial, samples.run, Path(name) / "sets", [*CASES, *SEQUENCES][: options.trials], fork)
    return trial.finish(options.json)


if __name__ == "__main__":
    sys.exit(main())
