"""The largest activations, and whether they fit into float16."""

from __future__ import annotations

import json
import math

import pytest
import torch

from ldm_ae.evaluation import ActivationRanges, activation_ranges, evaluate, first_batches
from ldm_ae.evaluation.activation_ranges import FP16_LIMIT, SAFETY_MARGIN
from ldm_ae.evaluation.report.summary import summary_lines
from ldm_ae.evaluation.report.write import WORST_MODULES, metrics, render
from ldm_ae.models import KLAutoencoder
from tests.evaluation.stubs import IdentityAutoencoder, Loader, loader, pictures


@pytest.fixture
def model(tiny_model: KLAutoencoder) -> KLAutoencoder:
    return tiny_model.eval().requires_grad_(False)


def largest(tensor: torch.Tensor) -> float:
    return float(tensor.abs().max())


def test_activation_ranges_are_the_largest_absolute_outputs(model: KLAutoencoder) -> None:
    found = activation_ranges(model, loader(6, 4))
    net, images = model.net, pictures(6)
    posterior = model.encode(images)
    hidden = net.encoder.conv_in(images)
    expected = {
        "encoder.conv_in": hidden,
        "encoder.down_blocks.0.resnets.0": net.encoder.down_blocks[0].resnets[0](hidden, None),
        "quant_conv": net.quant_conv(net.encoder(images)),
        "latents": posterior.mode(),
        "decoder.conv_in": net.decoder.conv_in(net.post_quant_conv(posterior.mode())),
        "decoder.conv_out": model.decode(posterior.mode()),
    }
    for name, tensor in expected.items():
        # Single images against a batch of 6: float32 sums in another order.
        assert found.modules[name] == pytest.approx(largest(tensor), rel=1e-4), name
    assert found.images == 6
    assert list(found.modules.values()) == sorted(found.modules.values(), reverse=True)
    assert found.largest == max(found.modules.values()) == found.modules[found.worst]
    # What only hands on its last child's output is not there twice.
    assert not {"encoder", "decoder", "reconstructions", "encoder.down_blocks.0"} & found.modules.keys()
    assert not any(module._forward_hooks for module in model.modules())
    assert activation_ranges(model, loader(6, 1)) == found


def test_large_negative_activation_is_counted(model: KLAutoencoder) -> None:
    model.net.decoder.conv_in.bias[0] = -1e5
    found = activation_ranges(model, loader())
    assert found.worst.startswith("decoder.")
    assert not found.safe_in_fp16
    # 1e5 and what an image and the residual blocks add, each of size 1.
    assert found.modules["decoder.conv_in"] == pytest.approx(1e5, rel=1e-3)
    assert found.largest == pytest.approx(1e5, rel=1e-3)


def test_fp16_verdict_applies_the_safety_margin() -> None:
    limit = FP16_LIMIT / SAFETY_MARGIN
    for value, safe in ((limit, True), (math.nextafter(limit, math.inf), False), (math.inf, False)):
        found = ActivationRanges(modules={"decoder.conv_in": value, "latents": 1.0}, images=1)
        assert found.safe_in_fp16 == safe
        words = ": safe in fp16" if safe else ": not safe in fp16; use bf16 or fp32"
        assert found.line().endswith(f"in decoder.conv_in{words} (limit 65504, margin 2, 1 image)")


def test_non_finite_activations_are_infinite_and_null_in_json(model: KLAutoencoder) -> None:
    model.net.decoder.conv_in.bias[0] = float("nan")
    found = activation_ranges(model, loader())
    assert found.modules["decoder.conv_in"] == math.inf
    assert math.isfinite(found.modules["latents"])
    described = json.loads(json.dumps(found.describe(), allow_nan=False))
    assert (described["safe_in_fp16"], described["largest"]) == (False, None)
    assert described["modules"]["decoder.conv_in"] is None
    assert described["protocol"] | {"measured": ""} == {
        "measured": "", "images": 6, "precision": "fp32", "limit": 65504.0, "safety_margin": 2.0,
    }  # fmt: skip


def test_network_without_modules_reports_latents_and_reconstructions() -> None:
    images = pictures(4)
    found = activation_ranges(IdentityAutoencoder(offset=7.0), loader(4))
    assert found.modules == {"reconstructions": largest(images + 7.0), "latents": largest(images)}


def test_first_batches_are_read_once_and_reused() -> None:
    class Once(Loader):
        reads = 0

        def __iter__(self):
            for batch in self.batches:
                self.reads += 1
                yield batch

    images = Once(loader(7, 2).batches)
    first, batches = first_batches(images, 3)
    assert (len(first), images.reads) == (2, 2)
    assert [batch.keys for batch in batches] == [batch.keys for batch in images.batches]
    assert images.reads == 4
    few, batches = first_batches(loader(3, 2), 16)
    assert len(few) == len(list(batches)) == 2


def test_fp16_evaluation_reports_ranges_and_fallbacks(
    tiny_model: KLAutoencoder, caplog: pytest.LogCaptureFixture
) -> None:
    with torch.no_grad():
        tiny_model.net.post_quant_conv.weight *= 1e3
        tiny_model.net.decoder.conv_in.weight *= 1e4
    options = {"source": "six", "transform_description": {}, "model_name": "tiny", "device": "cpu"}
    wide = evaluate(tiny_model, loader(), **options)
    found = evaluate(tiny_model, loader(), precision="fp16", **options)
    assert len(caplog.messages) == 1
    assert found.activations == wide.activations  # measured in float32, before the weights are rounded
    assert (found.activations.worst, found.activations.safe_in_fp16) == ("decoder.conv_in", False)
    assert wide.protocol["redone_batches"] == {"count": 0, "precision": None}
    assert found.protocol["redone_batches"] == {"count": 2, "precision": "fp32"}
    assert found.protocol["model"] == wide.protocol["model"]
    # The encoder stays in fp16: 11 bits in the latents, and what a dozen layers make of that.
    assert found.scores["psnr"] == pytest.approx(wide.scores["psnr"], abs=0.1)
    assert metrics(found)["activations"] == found.activations.describe()
    *_, activations, warning = summary_lines(found)
    assert activations == found.activations.line()
    assert warning.startswith("warning: fp16 overflowed in the scores: 2 passes over batches")
    page = render(found)
    assert "Largest activation" in page
    shown = list(found.activations.modules)
    assert all(f"<code>{name}</code>" in page for name in shown[:WORST_MODULES])
    assert f"<code>{shown[WORST_MODULES]}</code>" not in page
