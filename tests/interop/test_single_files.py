"""Autoencoders in single files of every layout in use: inferred from shapes, with outputs equal to the source's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ldm_ae.cli import main
from ldm_ae.core.errors import UserError
from ldm_ae.interop import import_ldm
from ldm_ae.models import KLAutoencoder, VQAutoencoder, load_autoencoder
from ldm_ae.models.loading.scales import UNKNOWN, scale_of
from ldm_ae.models.loading.shapes import LDMNetwork
from ldm_ae.models.loading.single_file import build_autoencoder, open_single_file
from tests.interop.compvis_reference import CompVisAutoencoder, CompVisGumbelVQ, CompVisVQ
from tests.interop.test_ldm_import import CLOSE, DDCONFIG, params, pixels, shaken, write_yaml

pytestmark = pytest.mark.slow

State = dict[str, Tensor]
ALONE = {"ch": 32, "ch_mult": [1, 2], "attn_resolutions": []}
"""A smaller network, without attention in its levels."""


def source(kind: str, **changes: Any) -> Any:
    """A network written for the tests, with `ddconfig` changed."""
    config = {**DDCONFIG, **ALONE, "double_z": kind == "kl", **changes}
    if kind == "kl":
        return shaken(CompVisAutoencoder(config, 4, groups=32))
    if kind == "kl16":
        return shaken(CompVisAutoencoder({**config, "z_channels": 16, "double_z": True}, None, groups=32))
    made = {"vq": CompVisVQ, "gumbel": CompVisGumbelVQ}[kind]
    return shaken(made({"embed_dim": 3, "n_embed": 16, "ddconfig": config}, groups=32))


def check_equal(net: Any, folder: Path) -> None:
    """Assert that the model in the folder encodes and decodes as the source network does."""
    model, x = load_autoencoder(folder), pixels()
    with torch.no_grad():
        if isinstance(model, KLAutoencoder):
            moments = net.moments(x)
            torch.testing.assert_close(model.encode(x).moments, moments, **CLOSE)
            latents = moments.chunk(2, dim=1)[0]
        else:
            latents, indices = net.encode(x)
            assert torch.equal(model.encode(x).indices, indices)
            assert len(indices.unique()) > 2
        torch.testing.assert_close(model.decode(latents), net.decode(latents), **CLOSE)


def save(state: State, path: Path) -> Path:
    save_file({key: value.contiguous() for key, value in state.items()}, path)
    return path


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("kl", {"attn_type": "none"}),
        ("kl", {"resamp_with_conv": False}),
        ("kl16", {}),  # FLUX's and SD3's: no quant convolutions
        ("kl16", {"attn_type": "none"}),
        ("vq", {"attn_type": "none"}),  # vq-f4-noattn, the first stage of inpainting_big
        ("vq", {"attn_type": "none", "attn_resolutions": [16]}),
        ("vq", {"attn_resolutions": [32, 16]}),
        ("gumbel", {}),
        ("gumbel", {"attn_type": "none", "resamp_with_conv": False}),
    ],
)
def test_every_compvis_network_gives_equal_outputs(kind: str, changes: dict[str, Any], tmp_path: Path) -> None:
    net = source(kind, **changes)
    found = import_ldm(save(net.state_dict(), tmp_path / "model.safetensors"), tmp_path / "out")
    assert found.network.middle_attention is (changes.get("attn_type") != "none")
    assert found.network.quant_conv is (kind != "kl16")
    check_equal(net, tmp_path / "out")
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["_class_name"] == {"vq": "VQModel", "gumbel": "QuantizedAutoencoder"}.get(kind, "AutoencoderKL")
    if kind == "kl16":
        theirs = diffusers.AutoencoderKL.from_pretrained(tmp_path / "out").eval()
        with torch.no_grad():
            torch.testing.assert_close(theirs.encode(pixels()).latent_dist.mean.shape[1], 16)
            x = pixels()
            torch.testing.assert_close(theirs.encode(x).latent_dist.parameters, net.moments(x), **CLOSE)


def nothing(state: State) -> State:
    return state


def below(prefix: str) -> Callable[[State], State]:
    return lambda state: {f"{prefix}{key}": value for key, value in state.items()}


@pytest.mark.parametrize(
    "prefix",
    ["", "first_stage_model.", "vae.", "module.", "model.", "model.first_stage_model.", "module.vae.", "autoencoder.",
     "_orig_mod.", "first_stage_model.module."],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_weights_below_any_prefix_are_found(kind: str, prefix: str, tmp_path: Path) -> None:
    net = source(kind)
    state = below(prefix)(net.state_dict() | {"loss.logvar": torch.zeros(())})
    path = save(state | {"betas": torch.zeros(4)}, tmp_path / "model.safetensors")
    found = import_ldm(path, tmp_path / "out")
    assert found.excluded == 2
    check_equal(net, tmp_path / "out")


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {"model": s}, lambda s: {"state_dict": s, "optimizer": {"state": {}}}, lambda s: {"ema": s},
        lambda s: {"model": {"state_dict": s}, "epoch": 3}, lambda s: {**s, "global_step": 3},
        lambda s: {"model": s, "ema": {key: value + 1 for key, value in s.items()}},
        lambda s: {"state_dict": {f"module.{key}": value for key, value in s.items()}},
    ],
)  # fmt: skip
def test_weights_in_nested_dictionaries_are_found(wrap: Callable[[State], Any], tmp_path: Path) -> None:
    net = source("kl")
    torch.save(wrap(net.state_dict()), tmp_path / "model.pt")
    found = import_ldm(tmp_path / "model.pt", tmp_path / "out")
    check_equal(net, tmp_path / "out")
    assert found.file.beside == (("ema",) if "ema" in (w := wrap({"a": torch.zeros(1)})) and "model" in w else ())


def test_file_format_is_detected_by_content(tmp_path: Path) -> None:
    """Safetensors named .ckpt, a pickle named .safetensors, and no suffix at all."""
    net = source("kl")
    save(net.state_dict(), tmp_path / "model.ckpt")
    torch.save(net.state_dict(), tmp_path / "model.safetensors")
    torch.save(net.state_dict(), tmp_path / "model", _use_new_zipfile_serialization=False)
    for name in ("model.ckpt", "model.safetensors", "model"):
        import_ldm(tmp_path / name, tmp_path / "out", overwrite=True)
        check_equal(net, tmp_path / "out")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_other_precisions_are_imported(dtype: torch.dtype, tmp_path: Path) -> None:
    net = source("kl16")
    state = {key: value.to(dtype) for key, value in net.state_dict().items()}
    net.load_state_dict({key: value.float() for key, value in state.items()})
    import_ldm(save(state, tmp_path / "model.safetensors"), tmp_path / "out")
    check_equal(net, tmp_path / "out")


def old_attention(state: State) -> State:
    """The names that diffusers gave the layers of attention before 0.17."""
    for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
        state = {key.replace(f".attentions.0.{new}.", f".attentions.0.{old}."): v for key, v in state.items()}
    return state


@pytest.mark.parametrize("change", [nothing, old_attention, below("vae."), below("module.")])
@pytest.mark.parametrize("options", [{}, {"use_quant_conv": False, "use_post_quant_conv": False},
                                     {"mid_block_add_attention": False}, {"use_post_quant_conv": False}])  # fmt: skip
def test_diffusers_kl_weights_are_imported_without_their_configuration(
    options: dict[str, Any], change: Callable[[State], State], tmp_path: Path
) -> None:
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    net = shaken(diffusers.AutoencoderKL(**blocks, block_out_channels=(32, 64), latent_channels=4, **options))
    import_ldm(save(change(net.state_dict()), tmp_path / "model.safetensors"), tmp_path / "out")
    model, x, latents = load_autoencoder(tmp_path / "out"), pixels(), torch.randn(2, 4, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(model.encode(x).moments, net.encode(x).latent_dist.parameters, **CLOSE)
        torch.testing.assert_close(model.decode(latents), net.decode(latents).sample, **CLOSE)


def test_diffusers_vq_weights_are_imported_without_their_configuration(tmp_path: Path) -> None:
    blocks = {"down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
              "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D")}  # fmt: skip
    net = shaken(diffusers.VQModel(**blocks, block_out_channels=(32, 64), num_vq_embeddings=16, vq_embed_dim=3))
    found = import_ldm(save(net.state_dict(), tmp_path / "model.safetensors"), tmp_path / "out")
    assert found.network.attention_levels == (1,)
    model, x = load_autoencoder(tmp_path / "out"), pixels()
    assert isinstance(model, VQAutoencoder)
    assert "legacy_beta" not in json.loads((tmp_path / "out/config.json").read_text())
    with torch.no_grad():
        # Attention over 256 positions adds up in another order.
        torch.testing.assert_close(model.decode(model.encode(x).mode()), net(x).sample, atol=1e-4, rtol=1e-5)


def test_weights_beside_their_configuration_need_no_import(tmp_path: Path, tiny_model_folder: Path) -> None:
    with pytest.raises(UserError, match=r"with its config\.json, as MODEL"):
        import_ldm(tiny_model_folder / "diffusion_pytorch_model.safetensors", tmp_path / "out")


def test_newer_attention_names_in_compvis_keys_are_imported(tmp_path: Path) -> None:
    net = source("kl")
    state = net.state_dict()
    for old, new in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("proj_out", "to_out.0"), ("norm", "group_norm")):
        state = {
            key.replace(f"attn_1.{old}.", f"attn_1.{new}."): value[:, :, 0, 0] if "attn_1" in key and value.ndim == 4
            else value for key, value in state.items()
        }  # fmt: skip
    import_ldm(save(state, tmp_path / "model.safetensors"), tmp_path / "out")
    check_equal(net, tmp_path / "out")


def test_code_counts_of_taming_are_ignored(tmp_path: Path) -> None:
    """taming's EMA quantizer keeps them, and its remapped one a table of indices in use."""
    net = source("vq")
    state = net.state_dict() | {
        "quantize.embedding.cluster_size": torch.ones(16), "quantize.embedding.embed_avg": torch.ones(16, 3),
        "quantize.used": torch.arange(4),
    }  # fmt: skip
    assert import_ldm(save(state, tmp_path / "model.safetensors"), tmp_path / "out").excluded == 3
    check_equal(net, tmp_path / "out")


# ------------------------------------------------------------------------------------------------------------ the scale


def factor_of(folder: Path) -> tuple[float, float | None]:
    config = json.loads((folder / "config.json").read_text())
    return config["scaling_factor"], config.get("shift_factor")


def test_scale_factor_in_the_file_is_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """LDM's scale_by_std measures it and keeps it as a tensor."""
    for kind in ("kl", "vq"):
        state = below("first_stage_model.")(source(kind).state_dict()) | {"scale_factor": torch.tensor(0.37)}
        torch.save({"state_dict": state}, tmp_path / "model.ckpt")
        assert main(["import", str(tmp_path / "model.ckpt"), str(tmp_path / kind)]) == 0
        assert factor_of(tmp_path / kind)[0] == pytest.approx(0.37)
        assert "scaling_factor 0.37: the file's scale_factor" in capsys.readouterr().out
    for wrong in (torch.tensor(0.0), torch.tensor(float("nan")), torch.ones(2)):
        torch.save({"state_dict": state | {"scale_factor": wrong}}, tmp_path / "model.ckpt")
        with pytest.raises(UserError, match="scale_factor must be one number above 0"):
            import_ldm(tmp_path / "model.ckpt", tmp_path / "out")


@pytest.mark.parametrize(
    ("wrap", "factor"),
    [
        (lambda s: {"model": s, "scale_factor": torch.tensor(0.3)}, 0.3),
        (lambda s: {"model": s, "scale_factor": 0.3}, 0.3),
        (lambda s: {"model": {"state_dict": s}, "scale_factor": torch.tensor([0.3])}, 0.3),
        (lambda s: {"model": {"state_dict": s, "scale_factor": 0.3}, "scale_factor": 0.5}, 0.3),
        (lambda s: {"state_dict": {**s, "scale_factor": 0.3}}, 0.3),
        (lambda s: {"state_dict": {**s, "scale_factor": torch.tensor(0.3)}, "scale_factor": 0.5}, 0.3),
        (lambda s: below("vae.")(s) | {"scale_factor": torch.tensor(0.3)}, 0.3),
        (lambda s: below("vae.")(s) | {"vae.scale_factor": torch.tensor(0.3)}, 0.3),
        (lambda s: below("module.first_stage_model.")(s) | {"module.scale_factor": torch.tensor(0.3)}, 0.3),
        (lambda s: {"model": s, "scale_factor": None}, 1.0),
    ],
)
def test_scale_factor_beside_the_weights_is_used(wrap: Callable[[State], Any], factor: float, tmp_path: Path) -> None:
    torch.save(wrap(source("kl").state_dict()), tmp_path / "model.pt")
    import_ldm(tmp_path / "model.pt", tmp_path / "out")
    assert factor_of(tmp_path / "out")[0] == pytest.approx(factor)


def test_invalid_scale_factor_beside_the_weights_is_refused(tmp_path: Path) -> None:
    state = source("kl").state_dict()
    for wrong, words in ((0.0, "got 0"), (float("nan"), "got nan"), (torch.ones(2), r"got a tensor \(2,\)")):
        torch.save({"model": state, "scale_factor": wrong}, tmp_path / "model.pt")
        with pytest.raises(UserError, match=f"scale_factor must be one number above 0, {words}"):
            import_ldm(tmp_path / "model.pt", tmp_path / "out")
    torch.save({"model": state, "scale_factor": 0.3}, tmp_path / "model.pt")
    with pytest.raises(UserError, match=r"--family sd has the scale 0.18215, but the file's scale_factor.* is 0.3"):
        import_ldm(tmp_path / "model.pt", tmp_path / "out", family="sd")


DEEP = {"ch_mult": [1, 1, 1, 1]}  # downsample factor 8
UNETS: dict[str, tuple[str, State]] = {
    "sd": (
        "kl",
        {"model.diffusion_model.x.1.transformer_blocks.0.attn2.to_k.weight": torch.zeros(4, 768)},
    ),
    "sdxl": ("kl", {"conditioner.embedders.0.weight": torch.zeros(3), "model.diffusion_model.x": torch.zeros(3)}),
    "sd3": ("kl16", {"model.diffusion_model.joint_blocks.0.weight": torch.zeros(3)}),
    "flux": ("kl16", {"model.diffusion_model.double_blocks.0.weight": torch.zeros(3)}),
}
PUBLISHED = {"sd": (0.18215, None), "sdxl": (0.13025, None), "sd3": (1.5305, 0.0609), "flux": (0.3611, 0.1159)}


@pytest.mark.parametrize("family", UNETS)
def test_family_with_other_channels_is_refused(family: str, tmp_path: Path) -> None:
    kind, channels, wanted, fix = {
        "kl": ("kl16", 16, 4, "give sd3 or flux"), "kl16": ("kl", 4, 16, "give sd or sdxl"),
    }[UNETS[family][0]]  # fmt: skip
    path = save(source(kind).state_dict(), tmp_path / "model.safetensors")
    said = rf"--family {family} does not fit the file: expected {wanted} latent channels, .*, got {channels}; {fix}"
    with pytest.raises(UserError, match=said):
        import_ldm(path, tmp_path / "out", family=family)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("family", UNETS)
@pytest.mark.parametrize(("levels", "factor"), [(3, 4), (5, 16)])
def test_family_with_another_downsample_factor_is_refused(
    family: str, levels: int, factor: int, tmp_path: Path
) -> None:
    net = source(UNETS[family][0], ch_mult=[1] * levels)
    path = save(net.state_dict(), tmp_path / "model.safetensors")
    said = rf"--family {family} does not fit the file: expected the downsample factor 8, .* has, got {factor}; remove"
    with pytest.raises(UserError, match=said):
        import_ldm(path, tmp_path / "out", family=family)
    assert not (tmp_path / "out").exists()


def test_kl_family_is_refused_for_a_vq_file(tmp_path: Path) -> None:
    config = {**DDCONFIG, **ALONE, **DEEP, "double_z": False}
    net = shaken(CompVisVQ({"embed_dim": 4, "n_embed": 16, "ddconfig": config}, groups=32))
    path = save(net.state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"--family sd does not fit the file: expected a KL autoencoder, .* got a VQ"):
        import_ldm(path, tmp_path / "out", family="sd")


@pytest.mark.parametrize("embed_dim", [2, 8])
def test_mismatched_quant_convolutions_are_refused_in_one_line(embed_dim: int, tmp_path: Path) -> None:
    config = {**DDCONFIG, **ALONE, "double_z": True}
    path = save(CompVisAutoencoder(config, embed_dim, groups=32).state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(UserError) as refused:
        import_ldm(path, tmp_path / "out")
    assert str(refused.value) == (
        f"{path}: its quant convolutions map 8 channels to {2 * embed_dim} and {embed_dim} to 4 (embed_dim "
        f"{embed_dim}, z_channels 4); those of diffusers' AutoencoderKL keep the number of channels, and it cannot "
        "be opened"
    )


def test_family_with_other_quant_convolutions_causes_a_note(tmp_path: Path) -> None:
    config = {**DDCONFIG, **ALONE, **DEEP, "double_z": True}
    path = save(shaken(CompVisAutoencoder(config, None, groups=32)).state_dict(), tmp_path / "model.safetensors")
    found = import_ldm(path, tmp_path / "out", family="sdxl")
    assert factor_of(tmp_path / "out") == PUBLISHED["sdxl"]
    assert "of SDXL has quant convolutions, and this one has no quant convolutions" in found.notes[0]


@pytest.mark.parametrize("family", UNETS)
def test_scale_of_published_models_is_recognized(family: str, tmp_path: Path) -> None:
    kind, others = UNETS[family]
    net = source(kind, **DEEP)
    prefix = "vae." if family == "flux" else "first_stage_model."
    path = save(below(prefix)(net.state_dict()) | others, tmp_path / "whole.safetensors")
    found = import_ldm(path, tmp_path / "out")
    assert factor_of(tmp_path / "out") == PUBLISHED[family]
    assert "published for" in found.scale.source
    assert not any("scaling_factor" in note for note in found.notes)
    # By hand, for a file that holds only the autoencoder.
    alone = save(net.state_dict(), tmp_path / "alone.safetensors")
    assert import_ldm(alone, tmp_path / "unknown").notes[0].startswith("scaling_factor is 1: unknown")
    assert factor_of(tmp_path / "unknown") == (1.0, None)
    import_ldm(alone, tmp_path / "named", family=family)
    assert factor_of(tmp_path / "named") == PUBLISHED[family]
    spec, latents = load_autoencoder(tmp_path / "named").latent_spec, torch.randn(1, 16 if kind == "kl16" else 4, 2, 2)
    scale, shift = PUBLISHED[family]
    torch.testing.assert_close(spec.scale(latents), (latents - (shift or 0.0)) * scale)


def test_stable_diffusion_network_alone_implies_its_scaling_factor() -> None:
    network = LDMNetwork(
        ch=128, ch_mult=(1, 2, 4, 4), num_res_blocks=2, attention_levels=(), middle_attention=True, z_channels=4,
        embed_dim=4, double_z=True, quant_conv=True, n_embed=None, quantization="none",
    )  # fmt: skip
    scale = scale_of({"encoder.conv_in.weight": torch.zeros(1)}, "", network)
    assert (scale.factor, scale.known) == (0.18215, True)
    assert "--family sdxl" in scale.source
    other = LDMNetwork(**{**vars(network), "ch": 64})
    assert scale_of({"encoder.conv_in.weight": torch.zeros(1)}, "", other) == UNKNOWN


def test_configuration_and_family_must_agree(tmp_path: Path) -> None:
    net = source("kl")
    path = save(net.state_dict(), tmp_path / "model.safetensors")
    content = {"embed_dim": 4, "ddconfig": {**DDCONFIG, **ALONE, "double_z": True}}
    config = write_yaml(tmp_path / "a.yaml", content, scale_factor=0.5)
    found = import_ldm(path, tmp_path / "out", config=config)
    assert factor_of(tmp_path / "out") == (0.5, None)
    assert found.notes == ()
    with pytest.raises(UserError, match=r"--family sd has the scale 0.18215, but scale_factor of .* is 0.5"):
        import_ldm(path, tmp_path / "out", config=config, family="sd")
    with pytest.raises(UserError, match="which a VQ model cannot have"):
        import_ldm(save(source("vq").state_dict(), path), tmp_path / "out", family="flux")


def test_attn_type_none_must_match_the_weights(tmp_path: Path) -> None:
    """`attn_type: none` in the YAML of vq-f4-noattn, with sides that then mean nothing."""
    path = save(source("vq", attn_type="none").state_dict(), tmp_path / "model.safetensors")
    content = params(16, 3)
    content["ddconfig"] |= {**ALONE, "attn_type": "none", "attn_resolutions": [16]}
    found = import_ldm(path, tmp_path / "out", config=write_yaml(tmp_path / "a.yaml", content))
    assert found.network.attention_levels == ()
    content["ddconfig"] |= {"attn_type": "vanilla", "attn_resolutions": []}
    with pytest.raises(UserError, match="has middle_attention True, the weights have False"):
        import_ldm(path, tmp_path / "out", config=write_yaml(tmp_path / "a.yaml", content))


@pytest.mark.parametrize("key", ["tanh_out", "give_pre_end"])
def test_decoder_options_missing_in_diffusers_are_refused_or_reported(
    key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save(source("kl").state_dict(), tmp_path / "model.safetensors")
    content = {"embed_dim": 4, "ddconfig": {**DDCONFIG, **ALONE, "double_z": True, key: True}}
    for scale_factor in (None, 0.5):  # of a first stage, and of a whole model
        config = write_yaml(tmp_path / "a.yaml", content, scale_factor=scale_factor)
        with pytest.raises(UserError, match=f"has {key}: true, which diffusers' decoder does not have"):
            import_ldm(path, tmp_path / "out", config=config)
    assert not (tmp_path / "out").exists()
    # It is not visible without the configuration, and the command prints its assumption.
    assert main(["import", str(path), str(tmp_path / "out")]) == 0
    assert "note: tanh_out (the decoder ends in tanh) is assumed to be false" in capsys.readouterr().err


def test_import_prints_the_inferred_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(below("vae.")(source("vq").state_dict()), tmp_path / "model.safetensors")
    assert main(["import", str(path), str(tmp_path / "out")]) == 0
    said = capsys.readouterr()
    for words in ("CompVis's keys under vae: VQ autoencoder of 16 codes, downsample factor 2, 3 latent channels",
                  "widths 32, 64, 1 blocks per level, attention in the middle, with quant convolutions",
                  "32 groups in each normalization, SiLU, and no tanh",
                  "scaling_factor 1: unknown, not measured"):  # fmt: skip
        assert words in said.out
    assert "note: scaling_factor is 1" in said.err


def test_single_file_is_opened_in_memory(tmp_path: Path) -> None:
    net: nn.Module = source("kl16")
    model = build_autoencoder(open_single_file(save(net.state_dict(), tmp_path / "ae.safetensors"))).eval()
    x = pixels()
    with torch.no_grad():
        torch.testing.assert_close(model.encode(x).moments, net.moments(x), **CLOSE)
