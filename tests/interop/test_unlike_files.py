"""Refusals of files without a supported autoencoder name their likely content; pickles build only tensors."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest
import torch

from ldm_ae.cli import main
from ldm_ae.core.errors import UserError
from ldm_ae.interop import import_ldm
from tests.interop.test_single_files import below, check_equal, save, source

HTML = b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>"
FILES = {
    "html": (HTML, r"a web page \(HTML\)"),
    "html after a mark": (b"\xef\xbb\xbf\n <HTML>", r"a web page \(HTML\)"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", r"a Git LFS pointer .* `git lfs pull`"),
    "json": (b'{"error": "gated"}', "JSON, such as"),
    "empty": (b"", "empty"),
    "zeros": (b"\0" * 5000, "only zeros"),
    "gguf": (b"GGUF\x03\0\0\0", "a GGUF file"),
    "zip": (b"PK\x03\x04", "damaged"),
    "noise": (b"no checkpoint", "neither a safetensors file nor a checkpoint"),
}


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors", ".pth"])
@pytest.mark.parametrize("name", FILES)
def test_files_without_weights_are_refused_by_name(name: str, suffix: str, tmp_path: Path) -> None:
    content, words = FILES[name]
    (tmp_path / f"model{suffix}").write_bytes(content)
    with pytest.raises(UserError, match=words) as error:
        import_ldm(tmp_path / f"model{suffix}", tmp_path / "out")
    assert str(error.value).isprintable()


def test_lightning_hyperparameters_are_not_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`save_hyperparameters` pickles omegaconf's containers beside the weights."""
    for name, kinds in {
        "omegaconf": (),
        "omegaconf.dictconfig": ("DictConfig",),
        "omegaconf.nodes": ("AnyNode",),
    }.items():
        module = types.ModuleType(name)
        monkeypatch.setitem(sys.modules, name, module)
        for kind in kinds:
            setattr(module, kind, type(kind, (), {"__module__": name, "__qualname__": kind}))
    node, config = sys.modules["omegaconf.nodes"].AnyNode(), sys.modules["omegaconf.dictconfig"].DictConfig()
    node._val, config._content = 3, {"embed_dim": node}
    net = source("vq")
    torch.save({"state_dict": net.state_dict(), "hyper_parameters": config}, tmp_path / "model.ckpt")
    for name in ("omegaconf", "omegaconf.dictconfig", "omegaconf.nodes"):
        monkeypatch.delitem(sys.modules, name)
    import_ldm(tmp_path / "model.ckpt", tmp_path / "out")
    check_equal(net, tmp_path / "out")


class Anything:
    """A class that the checkpoint names, such as a whole module that was pickled."""


def test_refused_pickle_names_the_class_it_would_build(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"model": Anything()}, tmp_path / "model.ckpt")
    assert main(["import", str(tmp_path / "model.ckpt"), str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "would construct tests.interop.test_unlike_files.Anything, which can run code" in said
    assert said.count("\n") == 1
    assert said.strip().isprintable()  # torch's own text has terminal codes
    assert "weights_only=False" not in said


KEYS = {
    "lora": (["lora_unet_down_blocks_0.lora_up.weight", "lora_unet_down_blocks_0.alpha"], "a LoRA"),
    "peft": (["base.unet.to_q.lora_A.weight"], "a LoRA"),
    "unet": (["model.diffusion_model.input_blocks.0.0.weight"], "without its first stage"),
    "diffusers unet": (["conv_in.weight", "time_embedding.linear_1.weight"], "a diffusion UNet"),
    "clip": (["text_model.encoder.layers.0.mlp.fc1.weight"], r"a text encoder \(CLIP\)"),
    "t5": (["encoder.block.0.layer.0.SelfAttention.q.weight"], r"a text encoder \(T5\)"),
    "ema": (["model_ema.encoderconv_inweight", "model_ema.decay"], r"only the averaged \(EMA\) weights"),
    "flux": (["double_blocks.0.img_attn.qkv.weight"], "a diffusion transformer"),
    "taesd": (["encoder.layers.0.weight", "decoder.layers.1.weight"], "TAESD"),
    "llamagen": (["encoder.conv_in.weight", "decoder.conv_in.weight", "encoder.conv_blocks.0.res.0.norm1.weight"],
                 "LlamaGen"),
    "dc": (["encoder.stages.0.0.weight"], "AutoencoderDC"),
    "control": (["control_model.input_blocks.0.0.weight"], "a ControlNet"),
    "embedding": (["emb_params"], "a textual inversion"),
    "decoder": (["decoder.conv_in.weight", "decoder.conv_out.bias"], "the decoder of an autoencoder without its"),
    "discriminator": (["main.0.weight", "main.0.bias"], "a discriminator"),
    "unknown": (["alpha.weight", "beta.weight"], "names begin with alpha, beta"),
}  # fmt: skip


@pytest.mark.parametrize("name", KEYS)
def test_weights_of_other_models_are_refused_by_name(name: str, tmp_path: Path) -> None:
    keys, words = KEYS[name]
    path = save({key: torch.zeros(2, 2, 1, 1) for key in keys}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=f"seems to be .*{words}"):
        import_ldm(path, tmp_path / "out")


def test_similar_unsupported_networks_are_refused_by_name(tmp_path: Path) -> None:
    state = source("kl16").state_dict()
    five = {key: value[:, :, None] if value.ndim == 4 else value for key, value in state.items()}
    flux2 = state | {"encoder.quant_conv.weight": torch.zeros(32, 32, 1, 1), "bn.running_mean": torch.zeros(4)}
    movq = state | {"decoder.norm_out.norm_layer.weight": torch.zeros(4)}
    linear = state | {"encoder.mid.attn_1.to_qkv.weight": torch.zeros(96, 32, 1, 1)}
    grey = state | {"encoder.conv_in.weight": torch.zeros(32, 1, 3, 3)}
    narrow = {key: value[:24] if key == "encoder.conv_in.weight" else value for key, value in state.items()}
    for content, words in ((five, "an autoencoder of video"), (movq, "a MoVQ"),
                           (flux2, r"bn\.running_mean has 4 numbers"),
                           (linear, "linear attention"), (grey, "images of 1 channels"),
                           (narrow, "have no equivalent in diffusers")):  # fmt: skip
        with pytest.raises(UserError, match=words):
            import_ldm(save(content, tmp_path / "model.safetensors"), tmp_path / "out")


@pytest.mark.slow
def test_file_with_two_autoencoders_is_refused(tmp_path: Path) -> None:
    net, other = source("kl"), source("kl")
    both = below("vae.")(net.state_dict()) | below("refiner.")(other.state_dict())
    with pytest.raises(UserError, match=r"has 2 autoencoders \(refiner\., vae\.\)"):
        import_ldm(save(both, tmp_path / "model.safetensors"), tmp_path / "out")
    # Those of taming's conditional models, and averages of the weights, are not meant.
    for prefix in ("cond_stage_model.", "vae_ema.", "teacher."):
        state = below("first_stage_model.")(net.state_dict()) | below(prefix)(other.state_dict())
        import_ldm(save(state, tmp_path / "model.safetensors"), tmp_path / "out", overwrite=True)
        check_equal(net, tmp_path / "out")
