"""The attacks of malicious.py, each a change of a run's newest checkpoint and of a store, with every hash corrected."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from ldm_ae.io.files import sha256, write_json
from ldm_ae.io.manifests import MANIFEST
from ldm_ae.models import hash_json

WEIGHTS = "diffusion_pytorch_model.safetensors"


class Scene:
    """Copies of a run and a store for one attack.

    Args:
        folder: What is outside of `run` and `store` in it, and beside it, must not change.
    """

    def __init__(self, folder: Path):
        self.folder, self.run, self.store = folder, folder / "run", folder / "store"
        self.checkpoint = self.run / "checkpoints" / "step-00000004"
        self.canary = folder / "canary"

    def pickled(self) -> bytes:
        """A pickle that lays the canary when it is loaded."""
        return pickle.dumps(_Bomb(str(self.canary)))

    def torch_file(self) -> bytes:
        """The same in the archive that torch.save writes."""
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, content in (("data.pkl", self.pickled()), ("version", b"3\n"), ("byteorder", b"little")):
                archive.writestr(f"archive/{name}", content)
        return buffer.getvalue()

    def models(self) -> list[Path]:
        """Every model folder of the run and its checkpoint."""
        return [self.run / "model", self.checkpoint / "model", self.checkpoint / "ema"]

    def sign_checkpoint(self, extra: dict[str, Any] | None = None) -> None:
        """A manifest that agrees with the files as they are now."""
        names = {p.relative_to(self.checkpoint).as_posix(): p for p in sorted(self.checkpoint.rglob("*"))}
        files = {name: _entry(p, "bytes") for name, p in names.items() if p.is_file() and name != MANIFEST}
        write_json(self.checkpoint / MANIFEST, {"format": "ldm_ae.checkpoint/1", "files": files | (extra or {})})

    def sign_store(self, change: Callable[[dict[str, Any]], object] = lambda _: None) -> None:
        """A description that agrees with the files as they are now, after `change` of its content."""
        content = json.loads((self.store / "store.json").read_text())
        del content["checksum"]
        content["files"] = {name: _entry(self.store / name, "size") for name in content["files"]}
        change(content)
        write_json(self.store / "store.json", content | {"checksum": hash_json(content)})

    def shards(self) -> list[Path]:
        return sorted(self.store.glob("*/*.safetensors"))


class _Bomb:
    def __init__(self, canary: str):
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.canary,)


def _entry(path: Path, size: str) -> dict[str, Any]:
    return {"sha256": sha256(path), size: path.stat().st_size} if path.is_file() else {"sha256": "0" * 64, size: 1}


class Attack(NamedTuple):
    """One way to do harm."""

    build: Callable[[Scene], object]
    refused_by: tuple[str, ...]
    """Ways that must not succeed; the others may do either, as long as no harm is done."""


ATTACKS: dict[str, Attack] = {}
RUN_WAYS = ("inspect_path", "inspect run", "inspect checkpoint", "load_state", "train")
STATE_WAYS = ("inspect_path", "inspect run", "inspect checkpoint", "train")
MODEL_WAYS = ("load_autoencoder", "load_autoencoder of a checkpoint", "inspect run", "decode", "evaluate", "train")
SHARD_WAYS = ("LatentDataset", "verify_store", "decode_store", "inspect store", "decode")
STORE_WAYS = SHARD_WAYS


def attack(name: str, *refused_by: str) -> Callable[[Callable[[Scene], object]], Callable[[Scene], object]]:
    """Adds a function to ATTACKS."""

    def add(build: Callable[[Scene], object]) -> Callable[[Scene], object]:
        ATTACKS[name] = Attack(build, refused_by)
        return build

    return add


def in_checkpoint(name: str, content: Callable[[Scene], bytes]) -> Callable[[Scene], None]:
    """Puts a file into the checkpoint, and beside every model in it if it is a model's."""

    def build(scene: Scene) -> None:
        folders = scene.models() if name == WEIGHTS or name.endswith((".bin", "config.json")) else [scene.checkpoint]
        for folder in folders:
            (folder / name).write_bytes(content(scene))
        scene.sign_checkpoint()

    return build


# ---------------------------------------------------------------------------------- pickles in every file that could be

for _name in ("state.safetensors", "state.json"):
    attack(f"pickle as {_name}", *RUN_WAYS)(in_checkpoint(_name, Scene.pickled))
for _name in ("discriminator.safetensors", "objective.safetensors"):
    attack(f"pickle as {_name}", "train")(in_checkpoint(_name, Scene.pickled))
    attack(f"torch.save as {_name}", "train")(in_checkpoint(_name, Scene.torch_file))
attack(f"pickle as {WEIGHTS}", *MODEL_WAYS)(in_checkpoint(WEIGHTS, Scene.pickled))
attack(f"torch.save as {WEIGHTS}", *MODEL_WAYS)(in_checkpoint(WEIGHTS, Scene.torch_file))
attack(f"pickle as {MANIFEST}")(lambda scene: (scene.checkpoint / MANIFEST).write_bytes(scene.pickled()))
attack("pickle as config.json", *MODEL_WAYS[:-1])(in_checkpoint("config.json", Scene.pickled))

BESIDE = ("optimizer.bin", "pytorch_model.bin", "scheduler.bin", "scaler.pt", "random_states_0.pkl",
          "custom_checkpoint_0.pkl", "last.ckpt", "diffusion_pytorch_model.bin")  # fmt: skip


@attack("pickles beside the safetensors")
def _(scene: Scene) -> None:
    for folder in (scene.checkpoint, *scene.models()):
        for name in BESIDE:
            (folder / name).write_bytes(scene.torch_file() if name.endswith((".bin", ".ckpt")) else scene.pickled())
    scene.sign_checkpoint()


@attack("pickles instead of the weights", *MODEL_WAYS)
def _(scene: Scene) -> None:
    for folder in scene.models():
        (folder / WEIGHTS).unlink()
        for name in ("diffusion_pytorch_model.bin", "pytorch_model.bin", "model.ckpt"):
            (folder / name).write_bytes(scene.torch_file())
    scene.sign_checkpoint()


@attack("pickles instead of the state", *RUN_WAYS)
def _(scene: Scene) -> None:
    for name in ("state.safetensors", "state.json", "discriminator.safetensors"):
        (scene.checkpoint / name).rename((scene.checkpoint / name).with_suffix(".pkl"))
        (scene.checkpoint / name).with_suffix(".pkl").write_bytes(scene.pickled())
    scene.sign_checkpoint()


@attack("an index of weights that names a pickle", *MODEL_WAYS[:-1])
def _(scene: Scene) -> None:
    for folder in scene.models():
        (folder / WEIGHTS).unlink()
        for name in ("evil.bin", "diffusion_pytorch_model-1.bin"):
            (folder / name).write_bytes(scene.torch_file())
        index = {"metadata": {"total_size": 1}, "weight_map": {"encoder.conv_in.weight": "evil.bin"}}
        (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    scene.sign_checkpoint()


@attack("an index of weights that leads outside", *MODEL_WAYS[:-1])
def _(scene: Scene) -> None:
    outside = scene.folder / "outside.safetensors"
    for folder in scene.models():
        shutil.copy(folder / WEIGHTS, outside)
        (folder / WEIGHTS).unlink()
        index = {"metadata": {"total_size": 1}, "weight_map": {"encoder.conv_in.weight": str(outside)}}
        (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    scene.sign_checkpoint()


@attack("latents_stats.pt of a store")
def _(scene: Scene) -> None:
    for path in scene.store.glob("*/latents_stats.pt"):
        path.write_bytes(scene.torch_file())
    scene.sign_store()


def configured(change: Callable[[Scene], dict[str, Any]]) -> Callable[[Scene], None]:
    """Changes every model's config.json."""

    def build(scene: Scene) -> None:
        # Somebody's module, which lays the canary when it is imported.
        for folder in (*scene.models(), scene.run, scene.checkpoint):
            (folder / "evil.py").write_text(f"open({str(scene.canary)!r}, 'w')\nclass Evil: pass\n")
        for folder in scene.models():
            config = json.loads((folder / "config.json").read_text())
            (folder / "config.json").write_text(json.dumps(config | change(scene)))
        scene.sign_checkpoint()

    return build


_MAP = {"AutoModel": "evil.Evil", "AutoencoderKL": "evil.Evil", "Evil": "evil.Evil"}
attack("auto_map and trust_remote_code")(configured(lambda _: {"auto_map": _MAP, "trust_remote_code": True}))
for _class in ("evil.Evil", "Evil", "builtins.exec", "../evil"):
    attack(f"_class_name {_class}", *MODEL_WAYS[:-1])(configured(lambda _, c=_class: {"_class_name": c}))  # type: ignore[misc]
attack("block types of somebody's module", *MODEL_WAYS[:-1])(
    configured(lambda _: {"down_block_types": ["evil.Evil"] * 2, "act_fn": "evil.Evil"})
)
attack("a quantizer of somebody's module", *MODEL_WAYS[:-1])(
    configured(lambda _: {"quantization_config": {"quant_method": "evil.Evil", "modules": ["evil"]}})
)
attack("_name_or_path elsewhere")(configured(lambda s: {"_name_or_path": str(s.folder.parent)}))

# ----------------------------------------------------------------------------------------------- ways to other folders

for _path in ("../../../../precious.txt", "/etc/passwd", "model/../../../evil", "a/\n\x1b[2J" * 50, "x" * 5000):

    @attack(f"a manifest that names {ascii(_path)[:40]}")
    def _(scene: Scene, path: str = _path) -> None:
        scene.sign_checkpoint({path: {"sha256": "0" * 64, "bytes": 1}})


@attack("links that lead outside")
def _(scene: Scene) -> None:
    for name in ("state.json", "discriminator.safetensors", f"model/{WEIGHTS}", f"ema/{WEIGHTS}"):
        outside = scene.folder / name.replace("/", "-")
        shutil.move(scene.checkpoint / name, outside)
        (scene.checkpoint / name).symlink_to(outside)
    for name in ("model", "checkpoints/step-00000002", "samples"):
        shutil.move(scene.run / name, scene.folder / f"moved-{Path(name).name}")
    (scene.run / "model").symlink_to(scene.folder / "moved-model")
    (scene.run / "checkpoints/step-00000009").symlink_to(scene.folder.parent)
    shutil.copytree(scene.folder / "moved-step-00000002", scene.run / "checkpoints/step-00000002")
    scene.sign_checkpoint()


def indexed(column: str, value: Any) -> Callable[[Scene], None]:
    """Puts a value into the index of a store."""

    def build(scene: Scene) -> None:
        table = pq.read_table(scene.store / "index.parquet")
        rows = table.to_pylist()
        rows[3][column] = value
        pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), scene.store / "index.parquet")
        scene.sign_store()

    return build


attack("a shard outside", *STORE_WAYS)(indexed("shard", "../../outside.safetensors"))
attack("a shard by an absolute path", *STORE_WAYS)(indexed("shard", "/tmp/latents_rank00_shard000.safetensors"))
attack("a bucket outside", *STORE_WAYS)(indexed("bucket", "../16x16"))
attack("a bucket of another size", *STORE_WAYS)(indexed("bucket", "15x16"))
attack("a row that is not there", *STORE_WAYS)(indexed("row", 2**31 - 1))
for _key in ("../../../precious.txt", "/tmp/evil.png", "..", "a\0b", "C:\\evil", "\n\x1b[2J"):
    attack(f"the key {_key!r}")(indexed("key", _key))
attack("an empty key")(indexed("key", ""))


@attack("keys that are no text", *STORE_WAYS)
def _(scene: Scene) -> None:
    table = pq.read_table(scene.store / "index.parquet")
    keys = pa.array([b"\xff\xfe" + str(i).encode() for i in range(len(table))]).view(pa.string())
    pq.write_table(table.set_column(0, table.schema.field(0), keys), scene.store / "index.parquet")
    scene.sign_store()


# --------------------------------------------------------------------------------------------------- numbers that lie


def safetensors(header: object, data: bytes, *, claimed: int | None = None) -> bytes:
    """A safetensors file with any header."""
    text = json.dumps(header).encode()
    return (len(text) if claimed is None else claimed).to_bytes(8, "little") + text + data


def lying(change: Callable[[dict[str, Any], bytes], bytes]) -> Callable[[Path], None]:
    """Writes a safetensors file anew from its header and data."""

    def rewrite(path: Path) -> None:
        content = path.read_bytes()
        length = int.from_bytes(content[:8], "little")
        path.write_bytes(change(json.loads(content[8 : 8 + length]), content[8 + length :]))

    return rewrite


def _first(header: dict[str, Any]) -> dict[str, Any]:
    return next(entry for name, entry in sorted(header.items()) if name != "__metadata__")


def _overlap(header: dict[str, Any], data: bytes) -> bytes:
    for entry in header.values():
        if "data_offsets" in entry:
            entry["data_offsets"] = [0, entry["data_offsets"][1] - entry["data_offsets"][0]]
    return safetensors(header, data)


def _outside(header: dict[str, Any], data: bytes) -> bytes:
    entry = _first(header)
    entry["data_offsets"] = [offset + 2**40 for offset in entry["data_offsets"]]
    return safetensors(header, data)


def _shape(header: dict[str, Any], data: bytes) -> bytes:
    _first(header)["shape"] = [2**40, 2**40]
    return safetensors(header, data)


LIES: dict[str, Callable[[dict[str, Any], bytes], bytes]] = {
    "a header of 2^63 bytes": lambda header, data: safetensors(header, data, claimed=2**63),
    "a header of 100 MB": lambda header, data: safetensors(header, data, claimed=100 * 2**20),
    "tensors that overlap": _overlap,
    "tensors outside the file": _outside,
    "shapes that do not fit the bytes": _shape,
}


def everywhere(change: Callable[[dict[str, Any], bytes], bytes]) -> Callable[[Scene], None]:
    """The lie in every safetensors file of the checkpoint, the model and the store."""

    def build(scene: Scene) -> None:
        for folder in (scene.run / "model", scene.checkpoint, scene.store):
            for path in folder.rglob("*.safetensors"):
                if path.stat().st_size > 100:  # one has no tensor but a number
                    lying(change)(path)
        scene.sign_checkpoint()
        scene.sign_store()

    return build


for _name, _change in LIES.items():
    attack(_name, *RUN_WAYS, *MODEL_WAYS, *SHARD_WAYS)(everywhere(_change))


def stated(change: Callable[[dict[str, Any]], object]) -> Callable[[Scene], None]:
    """Changes state.json."""

    def build(scene: Scene) -> None:
        state = json.loads((scene.checkpoint / "state.json").read_text())
        change(state)
        write_json(scene.checkpoint / "state.json", state)
        scene.sign_checkpoint()

    return build


attack("a best step that is a path", *STATE_WAYS)(stated(lambda s: s.update(best={"step": "../../..", "score": 1.0})))
attack("a position below 0", *STATE_WAYS)(stated(lambda s: s.update(position=-5)))
attack("no generators", *STATE_WAYS)(stated(lambda s: s.pop("rng")))
attack("generators of another kind", "train")(stated(lambda s: s["rng"][0].update(python=[3, ["a"], None])))
attack("a learning rate of words", "train")(
    stated(lambda s: s["optimizers"][0]["param_groups"][0].update(lr="__import__('os')"))
)
attack("tensors that are not there", *RUN_WAYS)(stated(lambda s: s.update(step={"__tensor__": "nowhere"})))


def described(change: Callable[[dict[str, Any]], object]) -> Callable[[Scene], None]:
    """Changes store.json."""
    return lambda scene: scene.sign_store(change)


attack("a scale of words", *STORE_WAYS)(described(lambda c: c["request"]["scaling"].update(scaling_factor="exec")))
attack("a factor of 0", *STORE_WAYS)(described(lambda c: c["request"]["scaling"].update(downsample_factor=0)))
attack("more channels than there are", *STORE_WAYS)(described(lambda c: c["request"]["scaling"].update(channels=10**9)))
attack("a dtype of somebody's module", *STORE_WAYS)(described(lambda c: c["request"].update(dtype="evil.Evil")))
attack("files that lead outside", "verify_store", "inspect store")(
    described(lambda c: c["files"].update({"../../precious.txt": {"sha256": "0" * 64, "size": 1}}))
)
attack("files without a size", *STORE_WAYS)(described(lambda c: c["files"].update({"index.parquet": {}})))
