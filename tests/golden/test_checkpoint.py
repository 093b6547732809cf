"""The format of checkpoints: byte for byte from an exact state, and the names and dtypes of a run's."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ldm_ae.discriminators import PatchDiscriminator
from ldm_ae.models import Autoencoder, KLAutoencoder, VQAutoencoder
from ldm_ae.quantizers import VQ
from ldm_ae.training import problems
from ldm_ae.training.checkpoints.checkpoint import load_state, write_checkpoint
from ldm_ae.training.checkpoints.snapshot import Snapshot
from tests.golden.compare import Golden
from tests.golden.describe import describe_config, describe_tensors, digests, key_paths
from tests.golden.inputs import CONFIGS, STEPS, integers, set_exact_weights

_NETWORK: dict[str, Any] = {
    "block_out_channels": (4, 8), "layers_per_block": 1, "norm_num_groups": 2, "mid_block_add_attention": False,
}  # fmt: skip
_VERSIONED = ("MANIFEST.json", "model/config.json", "ema/config.json")
"""config.json holds the version of diffusers, the manifest its sha256."""


def exact_state() -> dict[str, Any]:
    """All kinds of values that a run's state has: keys that are numbers, tuples, null, channels-last tensors."""
    moments = integers((4, 3, 3, 3), 1).float()
    return {
        "step": 7, "position": 28, "best": {"step": 5, "score": 21.5}, "skipped_steps": 0,
        "identity": {"seed": 0, "network": "{}", "discriminator": None, "ema": True},
        "optimizers": [
            {
                "state": {
                    0: {"step": torch.tensor(7.0), "exp_avg": moments.contiguous(memory_format=torch.channels_last)},
                    1: {"step": torch.tensor(7.0), "exp_avg": integers((5,), 2).float()},
                },
                "param_groups": [{"lr": 0.001, "betas": (0.5, 0.9), "maximize": False, "params": [0, 1]}],
            }
        ],
        "scaler": None,
        "rng": [{"python": [3, [1, 2, 3], None], "torch": integers((16,), 3, 0, 255).to(torch.uint8)}],
    }  # fmt: skip


def exact_snapshot(kind: str) -> Snapshot:
    model: Autoencoder = KLAutoencoder(**_NETWORK) if kind == "kl" else VQAutoencoder(quantizer=VQ(16, 4), **_NETWORK)
    discriminator = PatchDiscriminator(n_layers=1, ndf=4, norm="batch")
    set_exact_weights(model.net, seed=0)
    set_exact_weights(discriminator, seed=1)
    model.set_scaling(scaling_factor=0.25)  # which notes the hash of the encoder
    models = {"model": model, "ema": copy.deepcopy(model)}
    set_exact_weights(models["ema"].net, seed=2)
    networks = {"discriminator": discriminator.state_dict(), "objective": {"log_variance": torch.tensor(-2.0)}}
    return Snapshot(step=7, models=models, networks=networks | {"empty": {}}, state=exact_state())


@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_checkpoint_bytes_match(kind: str, golden: Golden, tmp_path: Path) -> None:
    snapshot = exact_snapshot(kind)
    folder = tmp_path / "step-00000007"
    write_checkpoint(folder, snapshot)
    assert problems(folder) == []
    golden.json(f"checkpoint/{kind}_bytes", digests(folder, without=_VERSIONED))
    manifest = json.loads((folder / "MANIFEST.json").read_text())
    for name in _VERSIONED[1:]:
        manifest["files"][name] = {"bytes": "(not compared)", "sha256": "(not compared)"}
    golden.json(f"checkpoint/{kind}_manifest", manifest)
    golden.json(f"checkpoint/{kind}_config", describe_config(folder / "model/config.json"))
    tensors = {path.relative_to(folder).as_posix(): describe_tensors(path) for path in folder.rglob("*.safetensors")}
    golden.json(f"checkpoint/{kind}_tensors", tensors)
    assert str(load_state(folder)) == str(exact_state())


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name if name == "kl_gan" else pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS]
)
def test_checkpoint_content_of_a_run_matches(name: str, golden: Golden, golden_run: Callable[[str], Path]) -> None:
    """The names of files, tensors and keys that training writes, which the exact checkpoints take as given."""
    run = golden_run(name)
    folder = run / "checkpoints" / f"step-{STEPS:08d}"
    tensors = {path.relative_to(folder).as_posix(): describe_tensors(path) for path in folder.rglob("*.safetensors")}
    content = {
        "run": sorted(path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()),
        "tensors": tensors,
        "state.json": key_paths(json.loads((folder / "state.json").read_text())),
        "environment.json": key_paths(json.loads((run / "environment.json").read_text())),
    }
    golden.json(f"checkpoint/run_{name}", content)
