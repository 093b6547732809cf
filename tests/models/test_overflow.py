"""What overflows in fp16 is computed again in float32, from the original weights, and nothing else is."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ldm_ae.core.errors import UserError
from ldm_ae.images.pixels import images_in_range
from ldm_ae.models import KLAutoencoder, OverflowGuard, for_inference, fp32_fallbacks, load_autoencoder, require_finite
from tests.evaluation.stubs import IdentityAutoencoder, PointPosterior

# The first layers of encoder and decoder multiply by this, so that inputs of size 1 stay within float16's range and
# inputs of size 1,000 leave it.
GAIN = 1e3


@pytest.fixture
def model(tiny_model: KLAutoencoder) -> KLAutoencoder:
    with torch.no_grad():
        tiny_model.net.encoder.conv_in.weight *= GAIN
        tiny_model.net.decoder.conv_in.weight *= GAIN
    return tiny_model


def ready(model, precision: str):
    return for_inference(copy.deepcopy(model), device="cpu", precision=precision)


def quiet_and_loud(channels: int, size: int) -> tuple[Tensor, Tensor]:
    return tuple(torch.randn(2, channels, size, size) * scale for scale in (1.0, 1e3))  # type: ignore[return-value]


def decode(model, latents: Tensor) -> Tensor:
    return model.decode(latents)


def encode(model, pixel_values: Tensor) -> Tensor:
    with images_in_range():  # the values are those that overflow in these weights, which `encode` refuses otherwise
        return model.encode(pixel_values).moments


@pytest.mark.parametrize(("part", "name", "channels", "size"), [(decode, "decoder", 4, 8), (encode, "encoder", 3, 32)])
def test_overflowing_batch_is_recomputed_in_float32(
    model: KLAutoencoder, caplog: pytest.LogCaptureFixture, part, name: str, channels: int, size: int
) -> None:
    quiet, loud = quiet_and_loud(channels, size)
    fp16, fp32 = ready(model, "fp16"), ready(model, "fp32")
    # The same network in fp16 without a guard.
    plain = copy.deepcopy(model).eval().half().to(memory_format=torch.channels_last)
    untouched = part(plain, quiet)
    assert torch.equal(part(fp16, quiet), untouched)
    assert (fp32_fallbacks(fp16), caplog.messages) == (0, [])
    assert not part(plain, loud).isfinite().all()
    expected = part(fp32, loud)
    assert expected.isfinite().all()
    assert torch.equal(part(fp16, loud), expected)
    assert fp32_fallbacks(fp16) == 1
    assert len(caplog.messages) == 1
    assert f"fp16 overflowed in the {name}" in caplog.messages[0]
    assert caplog.records[0].name == "ldm_ae"
    # The weights rounded to fp16 and widened again would have given something else.
    assert not torch.equal(part(plain.float(), loud), expected)
    part(fp16, loud)
    assert (fp32_fallbacks(fp16), len(caplog.messages)) == (2, 1)
    assert torch.equal(part(fp16, quiet), untouched)  # back in fp16
    assert fp32_fallbacks(fp32) == 0


def test_latents_beyond_the_fp16_range_are_valid_input(tiny_model: KLAutoencoder) -> None:
    latents = torch.full((1, 4, 8, 8), 1e5)
    fp16 = ready(tiny_model, "fp16")
    assert torch.equal(fp16.decode(latents), ready(tiny_model, "fp32").decode(latents))
    assert fp32_fallbacks(fp16) == 1


def test_non_finite_input_is_not_an_overflow(model: KLAutoencoder, caplog: pytest.LogCaptureFixture) -> None:
    quiet, loud = quiet_and_loud(4, 8)
    fp16 = ready(model, "fp16")
    quiet[0, 0, 0, 0] = float("nan")
    found = fp16.decode(quiet)
    assert [bool(image.isfinite().all()) for image in found] == [False, True]
    plain = copy.deepcopy(model).eval().half().to(memory_format=torch.channels_last)
    assert torch.equal(found[1], plain.decode(quiet)[1])  # as fp16 gives it, nothing was done again
    assert (fp32_fallbacks(fp16), caplog.messages) == (0, [])
    loud[0, 0, 0, 0] = float("inf")  # one image is bad, the other overflows
    found = fp16.decode(loud)
    assert [bool(image.isfinite().all()) for image in found] == [False, True]
    assert fp32_fallbacks(fp16) == 1


def test_float32_overflow_is_neither_counted_nor_hidden(
    tiny_model: KLAutoencoder, caplog: pytest.LogCaptureFixture
) -> None:
    with torch.no_grad():
        tiny_model.net.decoder.conv_in.weight *= 1e30
    fp16 = ready(tiny_model, "fp16")
    assert not fp16.decode(1e30 * torch.randn(2, 4, 8, 8)).isfinite().all()
    assert (fp32_fallbacks(fp16), caplog.messages) == (0, [])


class SignAutoencoder(IdentityAutoencoder):
    """A discrete model: the latents are the sign of the encoder's output, and therefore always finite."""

    def __init__(self) -> None:
        super().__init__()
        encoder = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.GroupNorm(1, 4))
        with torch.no_grad():
            encoder[0].weight *= GAIN
            encoder[1].weight *= GAIN
        self.net = nn.ModuleDict({"encoder": encoder})

    def encode(self, pixel_values: Tensor) -> PointPosterior:
        weight = self.net["encoder"][0].weight
        return PointPosterior(torch.where(self.net["encoder"](pixel_values.to(weight.dtype)) > 0, 1.0, -1.0))


def test_overflow_before_a_codebook_is_detected() -> None:
    model = SignAutoencoder()
    pixel_values = torch.rand(2, 3, 8, 8) * 2 - 1
    expected = ready(model, "fp32").encode(pixel_values).mode()
    assert expected.unique().tolist() == [-1.0, 1.0]
    fp16 = ready(model, "fp16")
    assert torch.equal(fp16.encode(pixel_values).mode(), expected)
    assert fp32_fallbacks(fp16) == 1


@pytest.mark.slow
def test_overflow_hooks_work_inside_compiled_modules(model: KLAutoencoder) -> None:
    fp16 = ready(model, "fp16")
    fp16.net.decoder.compile(backend="eager")  # the graph is what matters here, not the code made of it
    quiet, loud = quiet_and_loud(4, 8)
    expected = ready(model, "fp32").decode(loud)
    for _ in range(2):
        assert fp16.decode(quiet).isfinite().all()
        assert torch.equal(fp16.decode(loud), expected)
    assert fp32_fallbacks(fp16) == 2


def test_float32_copy_is_not_in_the_state_dict(model: KLAutoencoder) -> None:
    fp16 = ready(model, "fp16")
    before = {name: tensor.clone() for name, tensor in fp16.state_dict().items()}
    fp16.decode(quiet_and_loud(4, 8)[1])
    assert fp32_fallbacks(fp16) == 1
    assert {tensor.dtype for tensor in before.values()} == {torch.float16}
    after = fp16.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_preparing_again_restores_the_original_weights(model: KLAutoencoder) -> None:
    original = copy.deepcopy(model.state_dict())
    guard = for_inference(model, device="cpu", precision="fp16")
    twin = copy.deepcopy(guard)
    for _ in range(2):  # from fp16 to fp16 and to fp32
        guard = for_inference(guard, device="cpu", precision="fp16")
        assert isinstance(guard, OverflowGuard)
        assert not isinstance(guard.model, OverflowGuard)
    for again in (for_inference(guard, device="cpu"), for_inference(twin, device="cpu")):
        assert type(again) is KLAutoencoder
        assert all(torch.equal(tensor, original[name]) for name, tensor in again.state_dict().items())
        assert not any(module._forward_hooks for module in again.modules())


def test_other_members_are_those_of_the_wrapped_model(model: KLAutoencoder, tmp_path: Path) -> None:
    fp16 = ready(model, "fp16")
    fp16.set_scaling(scaling_factor=0.25)
    fp16.set_sample_size(64)
    assert (fp16.latent_spec.scaling_factor, fp16.sample_size) == (0.25, 64)
    assert fp16.last_layer.dtype == torch.float16
    fp16.save_pretrained(tmp_path)
    loaded = load_autoencoder(tmp_path)
    assert loaded.latent_spec == fp16.latent_spec
    assert type(ready(model, "bf16")) is KLAutoencoder


def test_non_finite_images_are_refused_by_name() -> None:
    images = torch.zeros(5, 3, 2, 2)
    require_finite(images, list("abcde"), "fp16")
    images[0, 0, 0, 0] = float("nan")
    with pytest.raises(UserError, match="the reconstruction of a is not finite in bf16; try --precision fp32"):
        require_finite(images, list("abcde"), "bf16")
    images[1:, 2, 1, 1] = float("-inf")
    with pytest.raises(UserError, match="of a, b, c and 2 more is not finite in fp16 and in fp32; the weights"):
        require_finite(images, list("abcde"), "fp16")
    with pytest.raises(UserError, match="not finite in fp32; the weights or the input are damaged"):
        require_finite(images, list("abcde"), "fp32")
