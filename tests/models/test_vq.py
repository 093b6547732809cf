"""Discrete autoencoders: against diffusers.VQModel, on the disk, and in training."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from pathlib import Path

import diffusers
import pytest
import torch
from torch import Tensor

from ldm_ae.core.errors import UserError
from ldm_ae.models import (
    DiscretePosterior,
    KLAutoencoder,
    VQAutoencoder,
    for_inference,
    load_autoencoder,
    model_hash,
)
from ldm_ae.models.trainable import set_trainable
from ldm_ae.quantizers import EMAVQ, FSQ, VQ, CodebookCare, GumbelVQ, Quantizer, ResidualVQ, describe_quantizer
from tests.quantizers.common import VARIANTS

WIDTHS = {
    "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4, "mid_block_add_attention": False,
}  # fmt: skip


def tiny(quantizer: Quantizer) -> VQAutoencoder:
    """Downsample factor 2; codes as far apart as the latents are."""
    model = VQAutoencoder(quantizer=quantizer, **WIDTHS).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        for name, value in quantizer.state_dict().items():
            if name.endswith("embedding.weight"):
                value.normal_(std=0.3)
    return model


def pictures(batch: int = 2) -> Tensor:
    return torch.rand(batch, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture(params=list(VARIANTS))
def model(request: pytest.FixtureRequest) -> VQAutoencoder:
    return tiny(VARIANTS[request.param]())


@pytest.mark.parametrize("make", [lambda: VQ(32, 4), lambda: EMAVQ(32, 4)])
def test_vq_model_opens_in_diffusers_with_equal_outputs(make: object, tmp_path: Path) -> None:
    model = tiny(make())  # type: ignore[operator]
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["_class_name"] == "VQModel"
    assert (config["num_vq_embeddings"], config["vq_embed_dim"]) == (32, 4)
    theirs, info = diffusers.VQModel.from_pretrained(tmp_path, output_loading_info=True)
    if isinstance(model.quantizer, VQ):
        assert not any(info.values()), info
    x = pictures()
    output = model(x)
    latents = theirs.encode(x).latents
    _, _, (_, _, indices) = theirs.quantize(latents)
    assert torch.equal(output.posterior.indices.flatten(), indices)
    assert len(indices.unique()) > 5
    # They round once more where they add and subtract the latents.
    assert torch.allclose(output.reconstructions, theirs(x).sample, atol=1e-5)


@pytest.mark.parametrize(("norm_type", "width", "latent_channels"), [("group", 8, 6), ("spatial", 32, 4)])
def test_vq_model_saved_by_diffusers_is_opened(
    tmp_path: Path, norm_type: str, width: int, latent_channels: int
) -> None:
    """The second is MoVQ's decoder, which normalizes by the latents and has room for no fewer channels."""
    theirs = diffusers.VQModel(
        block_out_channels=(width, width), down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=4,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=latent_channels, num_vq_embeddings=16, vq_embed_dim=4,
        norm_type=norm_type,
    ).eval()  # fmt: skip
    theirs.quantize.embedding.weight.data.normal_()
    theirs.save_pretrained(tmp_path)
    model = load_autoencoder(tmp_path)
    assert isinstance(model, VQAutoencoder)
    spec = model.latent_spec
    assert (spec.channels, spec.downsample_factor, spec.codebook_size) == (4, 2, 16)
    assert spec.scaling_factor == 0.18215
    x = pictures()
    assert torch.allclose(model(x).reconstructions, theirs(x).sample, atol=1e-5)  # as above
    again = tmp_path / "again"
    model.save_pretrained(again)
    expected = theirs.state_dict()
    found = diffusers.VQModel.from_pretrained(again).state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert json.loads((again / "config.json").read_text()) == json.loads((tmp_path / "config.json").read_text()) | {
        "_name_or_path": ""  # no path of this machine
    }


def test_vq_model_roundtrips_through_a_folder(model: VQAutoencoder, tmp_path: Path) -> None:
    model.set_scaling(scaling_factor=0.7)
    model.set_sample_size(16)
    model.save_pretrained(tmp_path)
    loaded = load_autoencoder(tmp_path)
    assert isinstance(loaded, VQAutoencoder)
    assert loaded.latent_spec == model.latent_spec
    assert loaded.sample_size == 16
    if not isinstance(model.quantizer, EMAVQ):
        assert type(loaded.quantizer) is type(model.quantizer)
    if json.loads((tmp_path / "config.json").read_text())["_class_name"] == "QuantizedAutoencoder":
        assert describe_quantizer(loaded.quantizer) == describe_quantizer(model.quantizer)
        assert model_hash(loaded) == model_hash(model)
    for name, value in loaded.net.state_dict().items():
        assert torch.equal(value, model.net.state_dict()[name]), name
    x = pictures()
    expected, found = model(x), loaded(x)
    assert torch.equal(found.posterior.indices, expected.posterior.indices)
    # Matrix products may round otherwise where the loaded weights are aligned otherwise in memory.
    assert torch.allclose(found.reconstructions, expected.reconstructions, atol=1e-5)
    assert model.latent_spec.scaling_factor == 0.7


def test_training_state_causes_no_warning_on_loading(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Only a resumed run uses it, so that loading the model causes no message about it."""
    model = tiny(VQ(8, 4, care=CodebookCare(restart_below=0.1)))
    model.save_pretrained(tmp_path)
    logger = logging.getLogger("diffusers")
    logger.addHandler(caplog.handler)
    try:
        load_autoencoder(tmp_path)
    finally:
        logger.removeHandler(caplog.handler)
    assert not caplog.records


def test_vq_posterior_is_deterministic_and_has_indices(model: VQAutoencoder) -> None:
    posterior = model.encode(pictures())
    assert isinstance(posterior, DiscretePosterior)
    spec = model.latent_spec
    assert posterior.mode().shape == (2, spec.channels, 8, 8)
    assert torch.equal(posterior.sample(torch.Generator(), noise=torch.randn(2, spec.channels, 8, 8)), posterior.mode())
    assert posterior.moments is None
    levels = posterior.indices[0].numel() / 64
    assert posterior.rate().tolist() == pytest.approx(2 * [levels * 64 * math.log2(spec.codebook_size)])
    terms = posterior.regularization()
    assert all(term.shape == (2,) for term in terms.values())
    expected = model(pictures()).reconstructions
    assert torch.equal(model.decode(posterior.mode()), expected)
    # Equal latents, but in another memory layout, in which convolutions sum in another order.
    assert torch.equal(model.quantizer.codes(posterior.indices), posterior.mode())
    assert torch.allclose(model.decode_indices(posterior.indices), expected, atol=1e-5)


def test_gradients_reach_the_encoder_through_the_quantizer(model: VQAutoencoder) -> None:
    model.train()
    output = model(pictures(), torch.randn(2, model.latent_spec.channels, 8, 8))
    output.reconstructions.square().mean().backward()
    gradient = model.net.encoder.conv_in.weight.grad
    assert gradient is not None
    assert gradient.abs().max() > 0


def test_gumbel_codes_follow_the_given_noise() -> None:
    model = tiny(GumbelVQ(8, 4, temperature=5.0)).train()
    first, second = torch.randn(2, 2, 4, 8, 8)
    codes = [model(pictures(), noise).posterior.indices for noise in (first, first, second)]
    assert torch.equal(codes[0], codes[1])
    assert not torch.equal(codes[0], codes[2])


def test_frozen_codebook_is_not_updated() -> None:
    model = tiny(EMAVQ(8, 4)).train()
    before = model.quantizer.embedding.weight.clone()
    set_trainable(model, ["decoder.*", "post_quant_conv.*"])
    statistics = model.learn([model.encode(pictures())])
    assert torch.equal(model.quantizer.embedding.weight, before)
    set_trainable(model, ["*"])
    assert model.learn([model.encode(pictures())]) == statistics
    assert not torch.equal(model.quantizer.embedding.weight, before)


def test_pretrained_vq_model_accepts_another_quantizer(tmp_path: Path) -> None:
    first = tiny(VQ(8, 4))
    first.save_pretrained(tmp_path / "vq")
    x = pictures()
    expected = first(x)
    for quantizer in (EMAVQ(8, 4), VQ(8, 4, beta=1.0, care=CodebookCare(restart_below=0.1))):
        model = VQAutoencoder(pretrained=str(tmp_path / "vq"), quantizer=quantizer).eval()
        assert model.quantizer is quantizer
        assert torch.equal(model(x).reconstructions, expected.reconstructions)
        assert set(model.net.quantize.state_dict()) == set(quantizer.state_dict())
    ema = VQAutoencoder(pretrained=str(tmp_path / "vq"), quantizer=EMAVQ(8, 4, decay=0.999))
    ema.learn([ema.encode(x)])
    # The averages start at the codes: one step at decay 0.999 moves none far.
    moved = (ema.quantizer.embedding.weight - first.quantizer.embedding.weight).abs().max()
    assert 0 < moved < 0.1
    tiny(FSQ((5, 3))).save_pretrained(tmp_path / "fsq")
    VQAutoencoder(pretrained=str(tmp_path / "fsq"), quantizer=FSQ((5, 3)))
    tiny(ResidualVQ(VQ(8, 4), 2)).save_pretrained(tmp_path / "residual")
    for folder, quantizer, words in (
        ("vq", FSQ((8, 3, 3, 3)), "expected a VQ or EMAVQ for the codes of .*, got a FSQ"),
        ("vq", VQ(9, 4), "has 8 codes of 4 dimensions, and the quantizer has 9 of 4"),
        ("fsq", FSQ((3, 7)), "has 15 codes of 2 dimensions, and the quantizer has 21 of 2"),
        ("residual", ResidualVQ(VQ(8, 4), 3), "has a ResidualVQ with other arguments"),
    ):
        with pytest.raises(UserError, match=words):
            VQAutoencoder(pretrained=str(tmp_path / folder), quantizer=quantizer)


@pytest.mark.parametrize("made_by", [lambda: EMAVQ(8, 4), lambda: FSQ((8, 3, 3, 3))], ids=["EMAVQ", "FSQ"])
@pytest.mark.parametrize("one_by_one", [True, False])
def test_kl_autoencoder_weights_initialize_a_vq_model(
    made_by: Callable[[], Quantizer], one_by_one: bool, tmp_path: Path
) -> None:
    quantizer = made_by()
    kl = KLAutoencoder(block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, attention_levels=(1,)).eval()
    if one_by_one:
        torch.nn.init.normal_(kl.net.quant_conv.bias)
    else:
        kl.net.quant_conv = kl.net.post_quant_conv = None
        kl.net.register_to_config(use_quant_conv=False, use_post_quant_conv=False)
    kl.save_pretrained(tmp_path)
    model = VQAutoencoder(pretrained=str(tmp_path), quantizer=quantizer).eval()
    x = pictures()
    latents = kl.encode(x).mode()
    torch.testing.assert_close(model.net.quant_conv(model.encoder_output(x)), latents, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.decode(latents), kl.decode(latents), atol=1e-5, rtol=1e-5)
    assert model.quantizer is quantizer
    assert model.latent_spec.scaling_factor == 1.0  # the codes' own is not measured yet
    for wrong, words in (
        (None, "has no codes; set a quantizer"),
        (VQ(8, 3), "4 latent channels, but the quantizer has codebook_dim 3"),
    ):
        with pytest.raises(UserError, match=words):
            VQAutoencoder(pretrained=str(tmp_path), quantizer=wrong)


def test_invalid_arguments_are_refused_by_name(tmp_path: Path) -> None:
    model = tiny(VQ(8, 4))
    with pytest.raises(UserError, match=r"pixel_values must be \(B, 3, H, W\), got \(3, 16, 16\)"):
        model.encode(torch.zeros(3, 16, 16))
    with pytest.raises(UserError, match=r"latents must be \(B, 4, h, w\), got \(1, 3, 8, 8\)"):
        model.decode(torch.zeros(1, 3, 8, 8))
    with pytest.raises(UserError, match="16x17 is not divisible"):
        model.encode(torch.zeros(1, 3, 16, 17))
    with pytest.raises(UserError, match=r"indices must be in \[0, 8\), got 0 to 8"):
        model.decode_indices(torch.arange(9).view(1, 3, 3))
    with pytest.raises(UserError, match="needs a quantizer"):
        VQAutoencoder()
    with pytest.raises(UserError, match=r"VQModel cannot store latents_mean .* of a scale it holds scaling_factor"):
        model.set_scaling(scaling_factor=1.0, latents_mean=(0.0,) * 4, latents_std=(1.0,) * 4)
    other = tiny(FSQ((5, 3)))
    other.set_scaling(scaling_factor=1.0, latents_mean=(0.5, 0.0), latents_std=(1.0, 2.0))
    other.save_pretrained(tmp_path)
    assert load_autoencoder(tmp_path).latent_spec.latents_mean == (0.5, 0.0)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantizer"]["class_name"] = "subprocess.Popen"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"no quantizer is named 'subprocess\.Popen'"):
        load_autoencoder(tmp_path)


def test_half_precision_and_gradient_checkpointing_match() -> None:
    model = tiny(VQ(8, 4))
    expected = model(pictures())
    model.enable_gradient_checkpointing()
    model.train()
    found = model(pictures())
    assert torch.allclose(found.reconstructions, expected.reconstructions, atol=1e-5)  # as above
    found.reconstructions.sum().backward()
    half = for_inference(model, device="cpu", precision="bf16")
    output = half(pictures())
    assert output.reconstructions.dtype == output.posterior.mode().dtype == torch.float32
    # Latents of 8 bits may fall to a neighbouring code, here and there.
    assert (output.posterior.indices == expected.posterior.indices).float().mean() > 0.9
