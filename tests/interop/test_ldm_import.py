"""Checkpoints of CompVis and taming become diffusers folders with equal outputs; other files are refused."""

from __future__ import annotations

import json
import random
import sys
import types
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ldm_ae.core.errors import UserError
from ldm_ae.interop import export_ldm, import_ldm
from ldm_ae.models import VQAutoencoder, load_autoencoder, model_hash
from ldm_ae.models.loading.single_file import open_single_file
from ldm_ae.quantizers import EMAVQ, FSQ, VQ, CodebookCare
from tests.interop.compvis_reference import CompVisAutoencoder, CompVisVQ

# Two implementations of the same float32 arithmetic: only the order of sums differs.
CLOSE = {"atol": 1e-5, "rtol": 1e-5}
DDCONFIG = {
    "z_channels": 4, "resolution": 32, "in_channels": 3, "out_ch": 3, "ch": 32, "ch_mult": [1, 2, 2],
    "num_res_blocks": 1, "attn_resolutions": [16], "dropout": 0.0,
}  # fmt: skip


def shaken(net: nn.Module) -> nn.Module:
    """Norms and biases start at 1 and 0, which would hide a swap."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return net.eval()


def params(n_embed: int | None, embed_dim: int) -> dict[str, Any]:
    found: dict[str, Any] = {"embed_dim": embed_dim, "ddconfig": {**DDCONFIG, "double_z": n_embed is None}}
    return found if n_embed is None else found | {"n_embed": n_embed}


@pytest.fixture
def kl() -> nn.Module:
    return shaken(CompVisAutoencoder(params(None, 4)["ddconfig"], 4, groups=32))


@pytest.fixture
def vq() -> nn.Module:
    """Codes of another width than the decoder's channels."""
    return shaken(CompVisVQ(params(16, 3), groups=32))


def write_yaml(path: Path, content: dict[str, Any], scale_factor: float | None = None) -> Path:
    inner: dict[str, Any] = {"target": "ldm.models.autoencoder.VQModel", "params": content}
    if scale_factor is not None:  # of a whole latent diffusion model
        inner = {"target": "x", "params": {"scale_factor": scale_factor, "first_stage_config": inner}}
    path.write_text(yaml.safe_dump({"model": inner}))
    return path


def pixels() -> Tensor:
    return torch.rand(2, 3, 32, 32) * 2 - 1


def loss_of(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**state, "loss.discriminator.main.0.weight": torch.zeros(2), "loss.logvar": torch.zeros(())}


@pytest.mark.parametrize("suffix", [".ckpt", ".pth", ".safetensors"])
def test_kl_checkpoint_gives_equal_outputs(kl: Any, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"model{suffix}"
    state = loss_of(kl.state_dict())
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state, "epoch": 3} if suffix == ".ckpt" else state, path)
    found = import_ldm(path, tmp_path / "out")
    assert found.excluded == 2
    assert "sample_size is assumed to be 256" in found.notes[1]
    theirs = diffusers.AutoencoderKL.from_pretrained(tmp_path / "out").eval()
    assert (theirs.config.sample_size, theirs.config.scaling_factor) == (256, 1.0)
    latents = torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        x = pixels()
        torch.testing.assert_close(theirs.encode(x).latent_dist.parameters, kl.moments(x), **CLOSE)
        torch.testing.assert_close(theirs.decode(latents).sample, kl.decode(latents), **CLOSE)


def test_vq_checkpoint_gives_equal_outputs_and_records_beta(vq: Any, tmp_path: Path) -> None:
    torch.save({"state_dict": loss_of(vq.state_dict())}, tmp_path / "last.ckpt")
    config = write_yaml(tmp_path / "config.yaml", params(16, 3))
    found = import_ldm(tmp_path / "last.ckpt", tmp_path / "out", config=config)
    assert found.network.n_embed == 16
    assert found.network.attention_levels == (1,)
    ours = load_autoencoder(tmp_path / "out")
    assert isinstance(ours, VQAutoencoder)
    theirs = diffusers.VQModel.from_pretrained(tmp_path / "out").eval()
    assert theirs.config.sample_size == 32
    x = pixels()
    with torch.no_grad():
        quantized, indices = vq.encode(x)
        assert len(indices.unique()) > 3
        posterior = ours.encode(x)
        assert torch.equal(posterior.indices, indices)
        torch.testing.assert_close(ours.decode(posterior.mode()), vq.decode(quantized), **CLOSE)
        torch.testing.assert_close(theirs.decode(theirs.encode(x).latents).sample, vq.decode(quantized), **CLOSE)
    # The side on which beta was trained is there for training on, and changes no latent.
    assert json.loads((tmp_path / "out/config.json").read_text())["legacy_beta"] is True
    assert isinstance(ours.quantizer, VQ)
    assert ours.quantizer.legacy
    right = VQAutoencoder(pretrained=str(tmp_path / "out"), quantizer=VQ(16, 3)).eval()
    assert model_hash(right) == model_hash(ours)
    right.save_pretrained(tmp_path / "right")
    again = load_autoencoder(tmp_path / "right")
    assert isinstance(again, VQAutoencoder)
    assert isinstance(again.quantizer, VQ)
    assert not again.quantizer.legacy


def test_vq_without_legacy_beta_does_not_record_it(tmp_path: Path) -> None:
    VQAutoencoder(quantizer=VQ(8, 4), block_out_channels=(8,), norm_num_groups=4).save_pretrained(tmp_path)
    assert "legacy_beta" not in json.loads((tmp_path / "config.json").read_text())


@pytest.mark.parametrize("make", [lambda: VQ(16, 3), lambda: EMAVQ(16, 3, care=CodebookCare(restart_below=0.1))])
def test_exported_vq_loads_in_an_independent_network(make: Any, tmp_path: Path) -> None:
    model = VQAutoencoder(
        quantizer=make(), block_out_channels=(32, 64, 64), layers_per_block=1, latent_channels=4,
        attention_levels=(1,), mid_block_add_attention=False,
    )  # fmt: skip
    model.set_sample_size(32)
    shaken(model)
    with torch.no_grad():
        model.quantizer.weight.normal_(std=0.3)
    export_ldm(model, tmp_path / "out")
    config = yaml.safe_load((tmp_path / "out/config.yaml").read_text())["model"]
    assert config["target"] == "ldm.models.autoencoder.VQModel"
    assert config["params"] == params(16, 3) | {"lossconfig": {"target": "torch.nn.Identity"}}
    other = CompVisVQ(config["params"], groups=32)
    other.load_state_dict(load_file(tmp_path / "out/model.safetensors"), strict=True)
    x = pixels()
    with torch.no_grad():
        quantized, indices = other.encode(x)
        posterior = model.encode(x)
        assert torch.equal(posterior.indices, indices)
        torch.testing.assert_close(other.decode(quantized), model.decode(posterior.mode()), **CLOSE)
        # And back: idle attention has been added, the outputs are the same.
        import_ldm(tmp_path / "out/model.safetensors", tmp_path / "back", config=tmp_path / "out/config.yaml")
        back = load_autoencoder(tmp_path / "back")
        assert torch.equal(back.encode(x).indices, indices)


@pytest.mark.parametrize("sides", [[], [16]])  # with `none`, the sides of vq-f4-noattn's relatives count for nothing
def test_checkpoint_without_attention_is_imported(sides: list[int], tmp_path: Path) -> None:
    content = params(16, 3)
    other: Any = CompVisVQ({**content, "ddconfig": {**content["ddconfig"], "attn_resolutions": []}}, groups=32)
    other.encoder.mid.attn_1 = other.decoder.mid.attn_1 = nn.Identity()  # as CompVis's make_attn does
    shaken(other)
    state = {f"first_stage_model.{key}": value for key, value in other.state_dict().items()}  # inpainting_big's
    torch.save({"state_dict": state | {"betas": torch.zeros(4)}}, tmp_path / "last.ckpt")
    content["ddconfig"] |= {"attn_type": "none", "attn_resolutions": sides}
    config = write_yaml(tmp_path / "config.yaml", content, scale_factor=1.0)
    found = import_ldm(tmp_path / "last.ckpt", tmp_path / "out", config=config)
    assert (found.network.middle_attention, found.network.attention_levels, found.excluded) == (False, (), 1)
    theirs = diffusers.VQModel.from_pretrained(tmp_path / "out").eval()
    assert not any("attentions" in key for key in theirs.state_dict())
    x = pixels()
    with torch.no_grad():
        quantized, indices = other.encode(x)
        assert len(indices.unique()) > 3
        # 1e-5 of values up to 5, which no attention evens out
        close = {"atol": 5e-5, "rtol": 1e-5}
        torch.testing.assert_close(theirs.decode(theirs.encode(x).latents).sample, other.decode(quantized), **close)
    # In CompVis's code again, whose networks have attention in the middle: of zeros.
    export_ldm(load_autoencoder(tmp_path / "out"), tmp_path / "again")
    again: Any = CompVisVQ(yaml.safe_load((tmp_path / "again/config.yaml").read_text())["model"]["params"], groups=32)
    again.load_state_dict(load_file(tmp_path / "again/model.safetensors"), strict=True)
    with torch.no_grad():
        torch.testing.assert_close(again.eval().decode(quantized), other.decode(quantized), **close)


def test_other_quantizers_are_refused(tmp_path: Path) -> None:
    model = VQAutoencoder(quantizer=FSQ((5, 5)), block_out_channels=(32,))
    with pytest.raises(UserError, match="VQ models with a table of codes, not a FSQ"):
        export_ldm(model, tmp_path / "out")


def test_first_stage_of_a_latent_diffusion_model_is_imported(kl: Any, tmp_path: Path) -> None:
    state = {f"first_stage_model.{key}": value for key, value in loss_of(kl.state_dict()).items()}
    state |= {"model.diffusion_model.out.weight": torch.zeros(3), "betas": torch.zeros(4)}
    save_file(state, tmp_path / "sd.safetensors")
    config = write_yaml(tmp_path / "sd.yaml", params(None, 4), scale_factor=0.18215)
    found = import_ldm(tmp_path / "sd.safetensors", tmp_path / "out", config=config)
    assert found.excluded == 4
    model = load_autoencoder(tmp_path / "out")
    assert (model.sample_size, model.latent_spec.scaling_factor) == (32, 0.18215)
    x = pixels()
    with torch.no_grad():
        torch.testing.assert_close(model.encode(x).mode(), kl.moments(x)[:, :4], **CLOSE)


def test_half_precision_weights_are_imported_as_float32(kl: Any, tmp_path: Path) -> None:
    torch.save({key: value.half() for key, value in kl.state_dict().items()}, tmp_path / "half.ckpt")
    import_ldm(tmp_path / "half.ckpt", tmp_path / "out")
    written = load_file(tmp_path / "out" / "diffusion_pytorch_model.safetensors")
    assert {value.dtype for value in written.values()} == {torch.float32}
    assert torch.equal(written["decoder.conv_out.weight"], kl.decoder.conv_out.weight.half().float())


def test_lightning_callbacks_in_a_checkpoint_are_not_unpickled(
    kl: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CompVis's zoo has a class of Lightning as a key; any other class is refused as ever."""
    name = "pytorch_lightning.callbacks.model_checkpoint"
    module = types.ModuleType(name)
    for kind in ("ModelCheckpoint", "Surprise"):
        setattr(module, kind, type(kind, (), {"__module__": name, "__qualname__": kind}))
    for part in ("pytorch_lightning", "pytorch_lightning.callbacks"):
        monkeypatch.setitem(sys.modules, part, types.ModuleType(part))
    monkeypatch.setitem(sys.modules, name, module)
    for kind in ("ModelCheckpoint", "Surprise"):
        callbacks = {getattr(module, kind): {"best_model_score": torch.tensor(0.1), "best_model_path": "x"}}
        torch.save({"state_dict": kl.state_dict(), "callbacks": callbacks}, tmp_path / f"{kind}.ckpt")
    for part in ("pytorch_lightning", "pytorch_lightning.callbacks", name):
        monkeypatch.delitem(sys.modules, part)
    import_ldm(tmp_path / "ModelCheckpoint.ckpt", tmp_path / "out")
    assert torch.equal(load_autoencoder(tmp_path / "out").last_layer, kl.decoder.conv_out.weight)
    with pytest.raises(UserError, match="was not opened"):
        import_ldm(tmp_path / "Surprise.ckpt", tmp_path / "other")


def without(key: str) -> Any:
    return lambda state: {k: v for k, v in state.items() if k != key}


def adding(key: str, value: Tensor) -> Any:
    return lambda state: {**state, key: value}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without("encoder.conv_in.weight"), r"it has no encoder\.conv_in\.weight of 4 axes"),
        (without("decoder.up.2.block.0.conv1.bias"), r"has no decoder\.up\.2\.block\.0\.conv1\.bias"),
        (without("quantize.embedding.weight"), "neither codes"),
        (adding("quantize.proj.weight", torch.zeros(1)), r"'quantize\.proj\.weight' is not a key"),
        (adding("encoder.mid.block_1.nin_shortcut.bias", torch.zeros(64)), "an unknown encoder"),
        (
            adding("decoder.conv_out.weight", torch.zeros(3, 5, 3, 3)),
            r"conv_out\.weight: .* shape \(3, 32, 3, 3\), got \(3, 5, 3, 3\)",
        ),
        (adding("encoder.down.9.block.0.conv1.bias", torch.zeros(1)), "have gaps"),
        (adding("decoder.conv_in.weight", torch.zeros(64, 0, 3, 3)), r"it has no decoder\.conv_in\.weight of 4 axes"),
        (adding("quant_conv.bias", torch.zeros(3, dtype=torch.int64)), "is not a weight of an autoencoder"),
        (adding("encoder.conv_in.weight", torch.zeros(1).expand(2**30, 3, 3, 3)), "declares more numbers"),
        (adding(f"a{'.b' * 200}", torch.zeros(1)), "is not a weight of an autoencoder"),
    ],
)
def test_weights_of_other_models_are_refused(vq: Any, change: Any, words: str, tmp_path: Path) -> None:
    torch.save(change(vq.state_dict()), tmp_path / "model.ckpt")
    with pytest.raises(UserError, match=words) as error:
        import_ldm(tmp_path / "model.ckpt", tmp_path / "out")
    assert len(str(error.value).splitlines()) <= 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"n_embed": 32}, "has n_embed 32, the weights have 16"),
        ({"embed_dim": 4}, "has embed_dim 4, the weights have 3"),
        ({"ddconfig": {"ch_mult": [1, 2]}}, r"has ch_mult \(1, 2\), the weights have \(1, 2, 2\)"),
        ({"ddconfig": {"attn_resolutions": [8]}}, r"has attention_levels \(2,\), the weights have \(1,\)"),
        ({"ddconfig": {"tanh_out": True}}, "has tanh_out: true, which"),
        (
            {"ddconfig": {"attn_type": "linear"}},
            "attn_type is linear; diffusers' blocks have vanilla attention or none",
        ),
        ({"ddconfig": {"use_linear_attn": True}}, "attn_type is linear"),
        ({"ddconfig": {"attn_type": "none"}}, r"has attention_levels \(\), the weights have \(1,\)"),
        ({"ddconfig": {"resolution": "many"}}, "resolution must be a whole number"),
        ({"ddconfig": {"resolution": 2**20}}, "resolution must be a whole number from 1 to 65536"),
        ({"ddconfig": {"z_channels": [[0] * 9] * 9}}, "z_channels must be whole numbers"),
        ({"ddconfig": None}, "not a configuration of CompVis's form"),
    ],
)
def test_configurations_of_other_models_are_refused(
    vq: Any, change: dict[str, Any], words: str, tmp_path: Path
) -> None:
    content = params(16, 3)
    for key, value in change.items():
        content[key] = {**content[key], **value} if isinstance(value, dict) else value
    torch.save(vq.state_dict(), tmp_path / "model.ckpt")
    config = write_yaml(tmp_path / "config.yaml", content)
    with pytest.raises(UserError, match=words):
        import_ldm(tmp_path / "model.ckpt", tmp_path / "out", config=config)


@pytest.mark.slow
def test_invalid_and_missing_files_are_refused(vq: Any, tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").write_bytes(b"no checkpoint")
    for name, words in (("model.ckpt", "was not opened"), ("none.ckpt", "no such file"), ("x.onnx", "no such file")):
        with pytest.raises(UserError, match=words):
            import_ldm(tmp_path / name, tmp_path / "out")
    torch.save(vq.state_dict(), tmp_path / "sound.ckpt")
    with pytest.raises(UserError, match="cannot be read as YAML"):
        import_ldm(tmp_path / "sound.ckpt", tmp_path / "out", config=tmp_path / "none.yaml")
    for text in ("9" * 5000, "2020-99-99", "[" * 100_000, "model: 3"):
        (tmp_path / "wrong.yaml").write_text(text)
        with pytest.raises(UserError, match=r"cannot be read as YAML|is not a configuration of CompVis's form"):
            import_ldm(tmp_path / "sound.ckpt", tmp_path / "out", config=tmp_path / "wrong.yaml")


@pytest.mark.parametrize("scale_factor", [0.0, -1.0, float("nan"), float("inf")])
def test_invalid_scale_factor_is_refused(vq: Any, scale_factor: float, tmp_path: Path) -> None:
    torch.save(vq.state_dict(), tmp_path / "model.ckpt")
    config = write_yaml(tmp_path / "config.yaml", params(16, 3), scale_factor=scale_factor)
    with pytest.raises(UserError, match="scale_factor must be a number above 0"):
        import_ldm(tmp_path / "model.ckpt", tmp_path / "out", config=config)


class Payload:
    """Unpickled by anything that obeys, it makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_code_in_a_pickled_checkpoint_is_not_run(vq: Any, tmp_path: Path) -> None:
    torch.save({"state_dict": vq.state_dict(), "callbacks": Payload(tmp_path / "made")}, tmp_path / "model.ckpt")
    with pytest.raises(UserError, match="was not opened"):
        import_ldm(tmp_path / "model.ckpt", tmp_path / "out")
    assert not (tmp_path / "made").exists()
    torch.load(tmp_path / "model.ckpt", weights_only=False)  # the payload is a real one
    assert (tmp_path / "made").exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_damaged_checkpoints_are_refused_in_one_line(zipped: bool, tmp_path: Path) -> None:
    """PyTorch's unpickler stumbles in many ways: KeyError, AssertionError, TypeError, ..."""
    path, rng = tmp_path / "model.ckpt", random.Random(0)
    torch.save({"state_dict": {"a": torch.zeros(2), "b": torch.ones(3)}}, path, _use_new_zipfile_serialization=zipped)
    sound = path.read_bytes()
    refused: list[str] = []
    for trial in range(200):
        damaged = bytearray(sound)
        if trial % 4 == 0:
            del damaged[rng.randrange(len(sound)) :]
        else:
            damaged[rng.randrange(len(sound))] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            open_single_file(path)
        except UserError as error:
            refused.append(str(error))
    assert all(len(words.splitlines()) == 1 for words in refused)
    assert len(refused) > 50  # every cut, and most changes outside the numbers
