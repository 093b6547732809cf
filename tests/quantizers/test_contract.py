"""What every quantizer must do; one that is exported from `ldm_ae.quantizers` is here by itself."""

from __future__ import annotations

import copy
import importlib
import inspect
import json
import math
import pkgutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ldm_ae import quantizers
from ldm_ae.core.errors import UserError
from ldm_ae.quantizers import QUANTIZERS, Quantizer, build_quantizer, describe_quantizer
from tests.quantizers.common import (
    VARIANTS,
    all_indices,
    assert_same_state,
    some_latents,
    state,
    train_a_little,
    wide_latents,
)


@pytest.fixture(params=list(VARIANTS))
def quantizer(request: pytest.FixtureRequest) -> Quantizer:
    return VARIANTS[request.param]()


@pytest.mark.parametrize("training", [True, False])
def test_decoding_the_indices_equals_the_quantized_latents(quantizer: Quantizer, training: bool) -> None:
    train_a_little(quantizer)
    latents = some_latents(quantizer).requires_grad_()
    found = quantizer.train(training).quantize(latents, noise=some_latents(quantizer, seed=9))
    assert found.quantized.shape == latents.shape
    assert found.quantized.dtype == torch.float32
    assert found.indices.dtype == torch.int64
    assert found.indices.shape in {(4, 3, 2), (4, len(getattr(quantizer, "levels", ())), 3, 2)}
    assert torch.equal(quantizer.codes(found.indices), found.quantized)
    assert torch.equal(found.latents, latents)
    assert not found.latents.requires_grad


def test_indices_cover_the_codebook(quantizer: Quantizer) -> None:
    indices = quantizer.eval().quantize(wide_latents(quantizer)).indices
    # A residual quantizer's levels in turn; any other has the one.
    for level in indices.view(len(indices), -1).T:
        assert level.unique().tolist() == list(range(quantizer.codebook_size))
    codes = quantizer.codes(all_indices(quantizer)).flatten(1)
    assert len(codes.unique(dim=0)) == quantizer.codebook_size, "two indices have one code"


def test_non_finite_latents_have_valid_indices_and_stay_non_finite(quantizer: Quantizer) -> None:
    """A step that overflowed must be skipped and must not crash."""
    latents = some_latents(quantizer)
    latents[1, 0, 0, 0] = float("nan")
    found = quantizer.quantize(latents, noise=some_latents(quantizer))
    assert 0 <= int(found.indices.min()) <= int(found.indices.max()) < quantizer.codebook_size
    assert not found.quantized[1].isfinite().all()
    assert found.quantized[0].isfinite().all()


def test_encoder_receives_a_gradient_through_the_quantizer(quantizer: Quantizer) -> None:
    latents, weights = some_latents(quantizer).requires_grad_(), some_latents(quantizer, seed=8)
    quantized = quantizer.quantize(latents, noise=weights).quantized
    (gradient,) = torch.autograd.grad((quantized * weights).sum(), latents)
    if quantizer.straight_through:
        assert torch.equal(gradient, weights)
    else:
        assert gradient.isfinite().all()
        assert (gradient.flatten(1).abs().amax(dim=1) > 0).all()
        assert not torch.equal(gradient, weights)


def test_every_quantizer_parameter_learns(quantizer: Quantizer) -> None:
    """Terms and reconstruction together reach every parameter; an unused one would stop DistributedDataParallel."""
    found = quantizer.quantize(some_latents(quantizer).requires_grad_(), noise=some_latents(quantizer))
    (found.quantized.square().sum() + sum(term.sum() for term in found.losses.values())).backward()
    for name, parameter in quantizer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_required_loss_terms_are_necessary_and_sufficient(quantizer: Quantizer) -> None:
    """Codes learn from the reconstruction and these terms; if there are terms, the reconstruction is not enough."""

    def all_learn(terms: frozenset[str]) -> bool:
        found = quantizer.quantize(some_latents(quantizer).requires_grad_(), noise=some_latents(quantizer))
        loss = found.quantized.square().sum() + sum(found.losses[term].sum() for term in terms)
        parameters = list(quantizer.parameters())
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True) if parameters else ()
        return all(gradient is not None and bool(gradient.abs().max() > 0) for gradient in gradients)

    assert all_learn(quantizer.needed_terms)
    assert all_learn(frozenset()) is not bool(quantizer.needed_terms)


def test_loss_terms_have_one_value_per_image(quantizer: Quantizer) -> None:
    found = quantizer.quantize(some_latents(quantizer), noise=some_latents(quantizer))
    for name, term in found.losses.items():
        assert term.shape == (4,), name
        assert term.dtype == torch.float32
        assert term.isfinite().all()


def test_forward_changes_no_state(quantizer: Quantizer) -> None:
    train_a_little(quantizer)
    before = state(quantizer)
    for training in (True, False):
        quantizer.train(training)
        first = quantizer.quantize(some_latents(quantizer), noise=some_latents(quantizer))
        again = quantizer.quantize(some_latents(quantizer), noise=some_latents(quantizer))
        assert torch.equal(first.indices, again.indices)
        assert torch.equal(first.quantized, again.quantized)
    torch.manual_seed(123)
    without_noise = quantizer.quantize(some_latents(quantizer))
    assert torch.equal(without_noise.indices, first.indices), "evaluation draws"
    quantizer.usage([first])
    assert_same_state(state(quantizer), before)


def test_saved_quantizer_resumes_exactly(quantizer: Quantizer, tmp_path: Path) -> None:
    train_a_little(quantizer)
    save_file(state(quantizer), tmp_path / "state.safetensors")
    description = json.loads(json.dumps(describe_quantizer(quantizer)))
    loaded = build_quantizer(description)
    assert describe_quantizer(loaded) == describe_quantizer(quantizer)
    loaded.load_state_dict(load_file(tmp_path / "state.safetensors"))
    assert_same_state(state(loaded), state(quantizer))
    for each in (quantizer, loaded):
        torch.manual_seed(len(str(each)))  # whatever the global generator does
        train_a_little(each, steps=4)
    assert_same_state(state(loaded), state(quantizer))


def test_quantizer_description_contains_every_argument(quantizer: Quantizer) -> None:
    assert list(quantizer.init_args) == list(inspect.signature(type(quantizer)).parameters)


def test_quantizer_is_unaffected_by_autocast(quantizer: Quantizer) -> None:
    train_a_little(quantizer, steps=1)
    latents, noise = some_latents(quantizer), some_latents(quantizer, seed=8)
    expected = quantizer.quantize(latents, noise=noise)
    with torch.autocast("cpu", torch.bfloat16):
        found = quantizer.quantize(latents, noise=noise)
        codes = quantizer.codes(found.indices)
    assert torch.equal(found.indices, expected.indices)
    assert torch.equal(found.quantized, expected.quantized)
    assert torch.equal(codes, expected.quantized)
    for name, term in expected.losses.items():
        assert torch.equal(found.losses[name], term)


def test_micro_batches_equal_one_batch(quantizer: Quantizer) -> None:
    other = copy.deepcopy(quantizer)
    for step in range(6):
        latents = some_latents(quantizer, batch=6, seed=step)
        whole = quantizer.learn([quantizer.quantize(latents, noise=latents)])
        parts = other.learn([other.quantize(part, noise=part) for part in latents.split(2)])
        assert whole == parts
    assert_same_state(state(other), state(quantizer))


def test_statistics_equal_hand_computed_values(quantizer: Quantizer) -> None:
    found = quantizer.eval().quantize(some_latents(quantizer))
    levels = found.indices.view(4, -1, 6).transpose(0, 1).flatten(1)
    shares = [level.unique(return_counts=True)[1] / level.numel() for level in levels]
    perplexity = sum(math.exp(-(share * share.log()).sum()) for share in shares) / len(shares)
    usage = sum(len(share) for share in shares) / len(shares) / quantizer.codebook_size
    assert found.statistics["codebook_usage"].item() == pytest.approx(usage, rel=1e-6)
    assert found.statistics["codebook_perplexity"].item() == pytest.approx(perplexity, rel=1e-5)  # float32 logarithms


def test_wrong_shapes_are_refused_by_name(quantizer: Quantizer) -> None:
    name = type(quantizer).__name__
    with pytest.raises(UserError, match=rf"{name}: latents must be \(B, {quantizer.codebook_dim}, h, w\), got \(2, 9"):
        quantizer.quantize(torch.zeros(2, 9, 3, 3))


def test_every_quantizer_module_is_exported() -> None:
    defined: set[type] = set()
    for info in pkgutil.iter_modules(quantizers.__path__):
        module = importlib.import_module(f"{quantizers.__name__}.{info.name}")
        defined |= {item for item in vars(module).values() if isinstance(item, type) and issubclass(item, Quantizer)}
    assert {item for item in defined if not inspect.isabstract(item)} == set(QUANTIZERS.values())


def test_quantizers_are_built_by_name() -> None:
    assert {"VQ", "EMAVQ", "CosineVQ", "FSQ", "LFQ", "BSQ", "SimVQ", "IBQ", "ResidualVQ", "GumbelVQ"} <= set(QUANTIZERS)
    with pytest.raises(UserError, match=r"no quantizer is named 'os\.system'; there are BSQ"):
        build_quantizer({"class_name": "os.system", "init_args": {}})
    with pytest.raises(UserError, match=r"quantizer FSQ does not accept these arguments: .*'level'"):
        build_quantizer({"class_name": "FSQ", "init_args": {"level": [3]}})
