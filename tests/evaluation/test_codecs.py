"""JPEG, WebP and AVIF as yardsticks, at a quality and at a rate."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ldm_ae.core.errors import UserError
from ldm_ae.evaluation import baselines
from ldm_ae.evaluation.baselines import CodecRates, matched_rate, score_codec, score_quality
from ldm_ae.evaluation.codecs import CODECS, QUALITIES, Codec, code_images, coded_bits, missing_codec
from ldm_ae.evaluation.metrics.noise_tolerance import NoiseTolerance
from ldm_ae.evaluation.metrics.psnr import PSNR, psnr
from ldm_ae.evaluation.metrics.ssim import SSIM
from tests.evaluation.stubs import Batch, Loader
from tests.pictures import smooth_picture


def pixel_values(count: int, start: int = 0) -> Tensor:
    arrays = [np.array(smooth_picture(i, 64, 48).convert("RGB")) for i in range(start, start + count)]
    return torch.stack([torch.from_numpy(array).permute(2, 0, 1) for array in arrays]).float() / 127.5 - 1


def loader(*batches: Tensor) -> Loader:
    return Loader([Batch(images, [str(i) for i in range(len(images))]) for images in batches])


@pytest.fixture(params=CODECS)
def codec(request: pytest.FixtureRequest) -> Codec:
    if (reason := missing_codec(request.param)) is not None:
        pytest.skip(reason)
    found: Codec = request.param
    return found


def test_higher_codec_quality_uses_more_bits_and_raises_psnr(codec: Codec) -> None:
    images = pixel_values(2)
    coarse, fine = code_images(images, codec, 5), code_images(images, codec, 90)
    assert (coarse.bits < fine.bits).all()
    assert (psnr(coarse.reconstructions, images) < psnr(fine.reconstructions, images)).all()
    assert fine.reconstructions.shape == images.shape
    assert torch.equal(coded_bits(images, codec, 90), fine.bits)


def test_codec_bits_equal_the_file_size(codec: Codec) -> None:
    images = pixel_values(1)
    picture = Image.fromarray(np.array(smooth_picture(0, 64, 48).convert("RGB")))
    file = io.BytesIO()
    picture.save(file, codec, quality=30, **({"optimize": True} if codec == "jpeg" else {}))
    coded = code_images(images, codec, 30)
    assert coded.bits.tolist() == [8 * len(file.getvalue())]
    expected = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1).float() / 127.5 - 1
    assert torch.equal(coded.reconstructions[0], expected)


def test_quality_outside_the_range_is_refused() -> None:
    with pytest.raises(UserError, match="the quality of jpeg is 96; it must be from 1 to 95"):
        code_images(pixel_values(1), "jpeg", 96)


def test_missing_codec_is_reported_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    Image.init()
    monkeypatch.delitem(Image.SAVE, "AVIF", raising=False)
    reason = missing_codec("avif")
    assert reason is not None
    assert reason == f"avif is skipped: Pillow {Image.__version__} cannot write it; install pillow 11.3 or newer"
    with pytest.raises(UserError, match="cannot write it"):
        coded_bits(pixel_values(1), "avif", 50)
    assert missing_codec("jpeg") is None


def rate(codec: Codec, quality: int, images: list[Tensor]) -> float:
    bits = torch.cat([coded_bits(batch, codec, quality) / batch[0, 0].numel() for batch in images])
    return float(bits.mean())


@pytest.mark.slow
def test_nearest_quality_is_that_of_an_exhaustive_search() -> None:
    """Of more images than the sample, whose rates differ from the first ones' because of their noise."""
    noisy = pixel_values(3) + 0.5 * torch.randn(3, 3, 48, 64, generator=torch.Generator().manual_seed(1))
    images = [pixel_values(17), noisy]
    rates = CodecRates("jpeg", loader(*images))
    all_rates = {quality: rate("jpeg", quality, images) for quality in range(1, 96)}
    assert rates.mean(40) == pytest.approx(all_rates[40], rel=1e-12)
    for wanted in (0.9, 1.7, 2.5, all_rates[77], 0.0, 100.0):
        found = rates.nearest(wanted)
        assert abs(all_rates[found] - wanted) == min(abs(value - wanted) for value in all_rates.values())


def test_search_measures_few_rates_and_each_once(monkeypatch: pytest.MonkeyPatch, codec: Codec) -> None:
    measured: list[tuple[int, int]] = []

    def coded_bits(images: Tensor, name: Codec, quality: int) -> Tensor:
        """Rates that grow with the quality, and are three times as high for images after the sample."""
        measured.append((len(images), quality))
        factor = 1.0 if float(images[0, 0, 0, 0]) == 0.0 else 3.0
        return torch.full((len(images),), factor * 64.0 * 1.05**quality, dtype=torch.float64)

    monkeypatch.setattr(baselines, "coded_bits", coded_bits)
    batches = loader(torch.zeros(16, 3, 8, 8), torch.ones(32, 3, 8, 8))
    rates = CodecRates(codec, batches)
    of_all = {quality: 64 * (16 + 3 * 32) / 48 * 1.05**quality / 64 for quality in range(101)}
    for wanted in (of_all[50], 1.02 * of_all[60]):
        found = rates.nearest(wanted)
        assert found == min(of_all, key=lambda quality: abs(of_all[quality] - wanted))
    passes = [quality for count, quality in measured if count == 32]
    assert len(passes) == len(set(passes)) <= 8  # of 101 qualities, for two rates
    single = [quality for count, quality in measured if count == 1]
    assert all(single.count(quality) == 16 for quality in single)


def test_codec_scores_equal_those_of_the_coded_images() -> None:
    first, second = pixel_values(2), pixel_values(3, start=2)
    images = torch.cat([first, second])
    wanted = rate("jpeg", 50, [images])
    metrics = [PSNR(), NoiseTolerance(), SSIM()]
    found = score_codec("jpeg", loader(first, second), wanted + 1e-9, metrics, device="cpu", pictures=3)
    assert (found.codec, found.quality, found.note) == ("jpeg", 50, "")
    assert found.bits_per_pixel == pytest.approx(wanted, rel=1e-12)
    coded = code_images(images, "jpeg", 50)
    assert list(found.scores) == ["psnr", "ssim"]  # metrics of a model are left aside
    assert found.scores["psnr"] == pytest.approx(float(psnr(coded.reconstructions, images).mean()), rel=1e-6)
    assert found.infos["psnr"].unit == "dB"
    assert found.skipped == {}
    expected = ((coded.reconstructions[:3] + 1) * 127.5).round().to(torch.uint8)
    assert torch.equal(torch.stack(found.pictures), expected)
    own = psnr(coded.reconstructions[:3], images[:3])
    assert [scores["psnr"] for scores in found.picture_scores] == pytest.approx(own.tolist(), rel=1e-6)


def test_batch_size_does_not_affect_codec_scores() -> None:
    images = pixel_values(4)
    one, all_at_once = (score_quality("webp", loader(*images.split(size)), 30, [PSNR()]) for size in (1, 4))
    assert one.bits_per_pixel == pytest.approx(all_at_once.bits_per_pixel, rel=1e-12)
    assert one.scores == pytest.approx(all_at_once.scores, rel=1e-9)
    assert one.pictures == []


def test_unreachable_rate_gives_the_extreme_quality_and_a_note(codec: Codec) -> None:
    images = loader(pixel_values(2))
    rates = CodecRates(codec, images)
    lowest, highest = QUALITIES[codec]
    low = score_codec(codec, images, 0.001, [PSNR()], rates=rates)
    assert low.quality == lowest
    assert low.note == f"{codec} has {low.bits_per_pixel:.3g} bits per pixel at its lowest quality {lowest}, above " \
        "the requested 0.001"  # fmt: skip
    high = score_codec(codec, images, 48.0, [PSNR()], rates=rates)
    assert high.quality == highest
    assert f"at its highest quality {highest}, below the requested 48" in high.note


def test_codec_without_images_is_refused() -> None:
    for call in (
        lambda: score_quality("jpeg", loader(), 50, [PSNR()]), lambda: score_codec("jpeg", loader(), 1.0, [PSNR()])
    ):  # fmt: skip
        with pytest.raises(UserError, match="no images to encode as jpeg"):
            call()


def test_loader_that_can_be_read_once_is_refused() -> None:
    def once() -> Iterator[Batch]:
        yield from loader(pixel_values(17)).batches

    with pytest.raises(UserError, match="the loader can be iterated once only"):
        score_codec("jpeg", once(), 1.0, [PSNR()])


def test_matched_rate_is_of_codes_or_of_latents_in_fp16() -> None:
    codes = matched_rate({"bits_per_pixel": 0.25, "numbers_per_pixel": 4 / 64})
    assert codes is not None
    assert codes == (0.25, "codes at a fixed length")
    latents = matched_rate({"kl_bits_per_pixel": 2.0, "numbers_per_pixel": 4 / 64})
    assert latents is not None
    assert latents == (1.0, "latents in fp16, 16 bits each")
    assert matched_rate({"psnr": 30.0}) is None
