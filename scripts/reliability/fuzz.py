"""Feeds changed manifests, recipes, model configurations and safetensors headers to the readers.

    python scripts/reliability/fuzz.py --trials 20000

Each input is a valid one with some of its values, bytes or lines changed at random. Only a UserError with a message of
one or two lines, or what the reader is documented to give, may come out, and in time. An input is a function of the
seed and its number alone; a failure names both.
"""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from mutations import SECONDS, flip_bits, mutate_json, time_limit
from safetensors.torch import save
from trials import Trial, arguments, make_images, make_recipe

from ldm_ae.core.errors import UserError
from ldm_ae.io.files import sha256, write_json
from ldm_ae.io.manifests import FORMAT, MANIFEST
from ldm_ae.io.tensor_files import read_tensors
from ldm_ae.latents import LatentStore
from ldm_ae.latents.store.format import read_description
from ldm_ae.models import KLAutoencoder, LatentSpec, hash_json, load_autoencoder
from ldm_ae.training import problems
from ldm_ae.training.checkpoints.checkpoint import load_state
from ldm_ae.training.checkpoints.tree import split_tensors
from ldm_ae.training.run import parse_config

Reader = Callable[[random.Random], object]
"""Feeds one changed input to a reader; raises if what came out is not what the reader is documented to give."""
WORDS = (
    "null", "~", "[]", "{}", "1e400", "-1", "99999999999999999999", ".nan", ".inf", "yes", "'text'", "2026-01-01",
    "0x10", "!!python/name:os.system", "!!python/object/apply:os.system ['false']", "&a [*a]", "*unknown",
    "torch.optim.Nothing", "{class_path: os.system, init_args: {command: 'false'}}",
    "{class_path: subprocess.Popen}", "? [1]", "<<: 3", "\t",
    "'", "@", '"\\x1b[2J"',
)  # fmt: skip


def manifest_reader(folder: Path) -> Reader:
    """`problems`: lines of text, none only for what the writer would have written."""
    (folder / "a").write_bytes(b"content")
    entry = {"bytes": 7, "sha256": sha256(folder / "a")}
    write_json(folder / MANIFEST, {"format": FORMAT, "files": {"a": entry}})
    valid = (folder / MANIFEST).read_bytes()

    def read(rng: random.Random) -> None:
        data = mutate_json(rng, valid) if rng.random() < 0.7 else flip_bits(rng, valid, 0, len(valid))
        (folder / MANIFEST).write_bytes(data)
        found = problems(folder)
        assert all(line.isprintable() for line in found), found
        assert bool(found) == (data != valid), "a changed manifest counts"

    return read


def state_reader(folder: Path) -> Reader:
    """`load_state`, over a state that has all kinds of entries."""
    state = {"a": (1, torch.ones(2)), "b": {0: {"c": [None, 1.5, "d"]}, 1: torch.zeros(3)}}
    tree, tensors = split_tensors(state)
    write_json(folder / "state.json", tree)
    (folder / "state.safetensors").write_bytes(save(tensors))
    valid = (folder / "state.json").read_bytes()

    def read(rng: random.Random) -> None:
        (folder / "state.json").write_bytes(mutate_json(rng, valid))
        load_state(folder)

    return read


def store_reader(folder: Path) -> Reader:
    """`read_description` of changed bytes, and `LatentStore` of changed content whose checksum is right again."""
    request = {
        "source": "images", "images": 1, "keys_hash": "0", "model_hash": "0", "model_config": {"a": [1]},
        "scaling": {"channels": 4, "downsample_factor": 2, "scaling_factor": 1.0, "latents_mean": None},
        "transform": {"version": 1}, "transform_hash": "0", "dtype": "fp32", "precision": "fp32", "latents": "mode",
        "flips": True, "seed": 0, "batch_size": 1, "shard_size": 1,
    }  # fmt: skip
    content: dict[str, Any] = {"format": "ldm_ae latent store", "format_version": 1, "request": request}
    content["files"] = {"index.parquet": {"sha256": "0", "size": 1}}
    valid = (json.dumps(content | {"checksum": hash_json(content)}, indent=2) + "\n").encode()

    def read(rng: random.Random) -> None:
        data = mutate_json(rng, valid)
        (folder / "store.json").write_bytes(data)
        if rng.random() < 0.5:
            assert read_description(folder) is None or data == valid, "a changed description counts"
            return
        try:
            changed = json.loads(data)
            changed.pop("checksum", None)
            write_json(folder / "store.json", changed | {"checksum": hash_json(changed)})
        except (ValueError, RecursionError, AttributeError, TypeError):
            return  # no JSON object any more: the other half has those
        LatentStore(folder)

    return read


def model_reader(folder: Path) -> Reader:
    """`load_autoencoder` over changed configurations: a model whose latents are well described."""
    model = KLAutoencoder(
        block_out_channels=(4, 4), layers_per_block=1, norm_num_groups=2, mid_block_add_attention=False
    )
    model.save_pretrained(folder)
    valid = (folder / "config.json").read_bytes()

    def read(rng: random.Random) -> None:
        (folder / "config.json").write_bytes(mutate_json(rng, valid))
        loaded = load_autoencoder(folder)
        assert isinstance(loaded.latent_spec, LatentSpec)
        assert isinstance(loaded.sample_size, int)

    return read


def header_reader(folder: Path) -> Reader:
    """`read_tensors` over changed headers: tensors whose bytes lie in the file."""
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(3, dtype=torch.int64), "c": torch.zeros(0, 2)}
    raw = save(tensors, metadata={"format": "pt", "more": "words"})
    length = int.from_bytes(raw[:8], "little")
    header, data = raw[8 : 8 + length], raw[8 + length :]

    def read(rng: random.Random) -> None:
        changed = mutate_json(rng, header) if rng.random() < 0.6 else flip_bits(rng, header, 0, len(header))
        size = rng.choice([len(changed)] * 8 + [2**63, 2**64 - 1, 100 * 2**20, len(changed) + 1, len(changed) - 1, 0])
        content = size.to_bytes(8, "little") + changed + data[: rng.choice([len(data)] * 4 + [0, 5])]
        (folder / "a.safetensors").write_bytes(content)
        found = read_tensors(folder / "a.safetensors")
        assert sum(tensor.nbytes for tensor in found.values()) <= len(data), "more bytes than the file has"

    return read


def recipe_reader(folder: Path) -> Reader:
    """`parse_config` over changed recipes; nothing is built."""
    images = make_images(folder / "images", 1)
    valid = make_recipe(folder / "valid.yaml", images).read_text()

    def read(rng: random.Random) -> None:
        lines = valid.splitlines()
        for _ in range(rng.randrange(1, 4)):
            number = rng.randrange(len(lines))
            key, colon, _ = lines[number].partition(":")
            way = rng.randrange(6)
            if way == 0:
                del lines[number]
            elif way == 1:
                lines[number] = f"{key}{colon} {rng.choice(WORDS)}"
            elif way == 2:
                lines.insert(number, lines[rng.randrange(len(lines))])
            elif way == 3:
                place = rng.randrange(len(lines[number]) + 1)
                lines[number] = lines[number][:place] + chr(rng.randrange(1, 0x250)) + lines[number][place:]
            elif way == 4:
                lines[number] = " " * rng.randrange(8) + lines[number]
            else:
                depth = rng.choice([10, 1000])
                lines[number] = f"{key}: {'[' * depth}{']' * depth}"
        data = "\n".join(lines).encode()
        if rng.random() < 0.1:
            data = flip_bits(rng, data, 0, len(data))
        (folder / "recipe.yaml").write_bytes(data)
        parse_config(["--config", str(folder / "recipe.yaml"), "--out", str(folder / "run")])
        # As the parser of recipes reads it: the two of PyYAML differ about tabs.
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        assert isinstance(yaml.load(data, loader), dict), "no recipe is none"

    return read


READERS: dict[str, tuple[Callable[[Path], Reader], float]] = {
    "manifest": (manifest_reader, 1.0),
    "state": (state_reader, 1.0),
    "store": (store_reader, 1.0),
    "header": (header_reader, 1.0),
    "model": (model_reader, 0.2),
    "recipe": (recipe_reader, 0.2),
}
"""How each reader is made, and its share of the trials: the last two take up to a tenth of a second."""


def fuzz(trial: Trial, name: str, folder: Path, count: int, seed: int) -> Counter[str]:
    """`count` inputs for one reader; how many were refused and how many were still valid."""
    folder.mkdir(parents=True)
    read = READERS[name][0](folder)
    counts: Counter[str] = Counter()
    for number in range(count):
        wrong = None
        try:
            with time_limit(SECONDS):
                read(random.Random(f"{seed} {name} {number}"))
            counts["read"] += 1
        except UserError as error:
            counts["refused"] += 1
            if str(error).count("\n") > 1 or not str(error).replace("\n", "").isprintable():
                wrong = f"not one or two lines of text: {str(error)[:300]!r}"
        except Exception as error:  # noqa: BLE001 - that any may come out is what is tried here
            wrong = f"{type(error).__name__}: {str(error)[:300]!r}"
        trial.count(wrong is None, f"{name} {number} of seed {seed}: {wrong}")
    return counts


def main() -> int:
    """The readers' part of row 5, with more kinds of changes."""
    options = arguments(__doc__, trials=2000).parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    torch.set_num_threads(1)
    trial = Trial(5, "fuzzing the readers", "a UserError or the documented result")
    with tempfile.TemporaryDirectory() as folder:
        for name, (_, share) in READERS.items():
            counts = fuzz(trial, name, Path(folder) / name, max(round(options.trials * share), 1), options.seed)
            trial.figures[name] = f"{counts['refused']} refused of {sum(counts.values())}"
    return trial.finish(options.json)


if __name__ == "__main__":
    sys.exit(main())
