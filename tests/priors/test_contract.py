"""What every prior over codes must hold; a new one gets these tests by being in `PRIORS`."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from ldm_ae.core.errors import UserError
from ldm_ae.priors import CodePrior, GatedPixelCNN, HierarchicalPixelCNN, load_prior, save_prior
from ldm_ae.priors.transformer import _cache_name
from tests.priors.common import VARIANTS, small, some_indices

LABELS = torch.tensor([0, 2, -1])
every_prior = pytest.mark.parametrize("name", VARIANTS)
# Two float32 ways of adding the same numbers, of sizes around 1, in a handful of layers.
ROUNDING = 1e-4


@every_prior
def test_logits_depend_on_exactly_the_previous_codes(name: str) -> None:
    """No blind spot: of the logits at each place, the gradient at the codes before is nowhere zero, and exactly zero at
    the code itself and after it."""
    prior = small(name)
    embedded = prior.embed(prior.sequence(some_indices(prior, 1))).detach().requires_grad_()
    logits = prior.logits(embedded, torch.tensor([1]))
    length = math.prod(prior.shape)
    assert logits.shape == (1, length, prior.codebook_size)
    for place in range(length):
        direction = torch.randn(prior.codebook_size)
        (gradient,) = torch.autograd.grad(logits[0, place] @ direction, embedded, retain_graph=True)
        sizes = gradient[0].abs().amax(dim=1)
        assert (sizes[:place] > 0).all(), (place, sizes)
        assert (sizes[place:] == 0).all(), (place, sizes)


@every_prior
def test_class_label_changes_every_logit(name: str) -> None:
    prior = small(name)
    indices = some_indices(prior, 1).expand(3, *prior.shape)
    logits = prior(indices, LABELS)
    for one, other in itertools.combinations(logits, 2):
        assert (one - other).abs().amax(dim=1).min() > ROUNDING
    assert torch.equal(prior(indices, None), logits[2:].expand_as(logits))


def in_order(prior: CodePrior, image: torch.Tensor) -> list[int]:
    """The codes of one image in the order of the sequence."""
    if isinstance(prior, HierarchicalPixelCNN):
        codes, start = [], 0
        for side in (1, 2, 4)[: prior.map_count]:
            codes += [
                int(image[start + side * (row % side) + column % side, row // side, column // side])
                for row in range(side * prior.shape[1]) for column in range(side * prior.shape[2])
            ]  # fmt: skip
            start += side**2
        return codes
    places = itertools.product(*map(range, prior.shape[-2:]))
    return [int(code) for place in places for code in image[(..., *place)].flatten()]


@every_prior
def test_bits_equal_the_sum_of_log_probabilities(name: str) -> None:
    prior = small(name)
    indices = some_indices(prior)
    bits = prior.bits(indices, LABELS)
    assert bits.dtype == torch.float64
    probabilities = prior(indices, LABELS).detach().double().softmax(dim=2)
    for image, rows, found in zip(indices, probabilities, bits, strict=True):
        codes = in_order(prior, image)
        expected = -sum(math.log2(row[code]) for row, code in zip(rows, codes, strict=True))
        assert float(found) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("name", "shape"), [
    ("GatedPixelCNN", (2, 3)), ("CausalTransformer", (2, 3)), ("CausalTransformer", (2, 1, 3)),
    ("HierarchicalPixelCNN", (5, 1, 1)),
])  # fmt: skip
def test_probabilities_sum_to_one_and_match_sample_frequencies(name: str, shape: tuple[int, ...]) -> None:
    """The probabilities of all images of two codes sum to 1, and 4000 samples have these frequencies."""
    prior = small(name, codebook_size=2, shape=shape)
    length = math.prod(shape)
    count = 2**length
    images = torch.tensor(list(itertools.product((0, 1), repeat=length))).view(count, *shape)
    labels = torch.full((count,), 1)
    probabilities = prior.bits(images, labels).neg().exp2()
    # float32 logits of sizes around 10 are right to 1e-6
    assert float(probabilities.sum()) == pytest.approx(1.0, abs=1e-5)
    assert probabilities.max() > 2 * probabilities.mean()
    samples = prior.sample(4000, torch.full((4000,), 1), generator=torch.Generator().manual_seed(0))
    numbers = samples.flatten(1) @ (2 ** torch.arange(length - 1, -1, -1))
    frequencies = numbers.bincount(minlength=count) / 4000
    deviations = (frequencies - probabilities) / (probabilities * (1 - probabilities) / 4000).sqrt()
    assert deviations.abs().max() < 4.5  # of 64, by chance once in two thousand seeds


@every_prior
def test_samples_are_reproducible_and_in_range(name: str) -> None:
    prior = small(name)
    first, again, other = (prior.sample(3, LABELS, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert first.shape == (3, *prior.shape)
    assert first.dtype == torch.int64
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.min() >= 0
    assert first.max() < prior.codebook_size


@every_prior
def test_sequential_logits_equal_parallel_logits(name: str) -> None:
    prior = small(name)
    indices = some_indices(prior)
    codes = iter(prior.sequence(indices).T)
    found = []

    def choose(logits: torch.Tensor) -> torch.Tensor:
        found.append(logits)
        return next(codes)

    assert torch.equal(prior.walk(choose, count=3, labels=LABELS), indices)
    assert torch.allclose(torch.stack(found, dim=1), prior(indices, LABELS), atol=ROUNDING, rtol=ROUNDING)


class OldNames(torch.nn.Module):
    """GPT-2 whose keys and values are an argument and an output named `past_key_values`."""

    def __init__(self, net: torch.nn.Module):
        super().__init__()
        self.net = net

    def forward(self, inputs_embeds: torch.Tensor, past_key_values: object, use_cache: bool) -> dict[str, object]:
        return self._renamed("past_key_values", inputs_embeds, past_key_values)

    def _renamed(self, name: str, inputs_embeds: torch.Tensor, cache: object) -> Any:
        theirs = _cache_name(self.net)
        found = self.net(inputs_embeds=inputs_embeds, use_cache=True, **{theirs: cache})
        return type(found)({"logits": found.logits, name: found[theirs]})

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.net.get_input_embeddings()


class NewNames(OldNames):
    """The same by the name of `cache`."""

    def forward(self, inputs_embeds: torch.Tensor, cache: object, use_cache: bool) -> dict[str, object]:
        return self._renamed("cache", inputs_embeds, cache)


@pytest.mark.parametrize("names", [OldNames, NewNames])
def test_key_value_cache_works_under_both_transformers_names(names: type[OldNames]) -> None:
    prior = small("CausalTransformer")
    expected = prior.sample(3, LABELS, generator=torch.Generator().manual_seed(0))
    prior.net = names(prior.net)
    assert torch.equal(prior.sample(3, LABELS, generator=torch.Generator().manual_seed(0)), expected)


@every_prior
def test_prior_roundtrips_through_a_folder(name: str, tmp_path: Path) -> None:
    prior = small(name, dropout=0.25)
    indices = some_indices(prior)
    save_prior(prior, tmp_path, model_hash="abc")
    found = load_prior(tmp_path)
    assert found.model_hash == "abc"
    assert type(found.prior) is type(prior)
    assert found.prior.init_args == prior.init_args
    assert not found.prior.training
    assert torch.equal(found.prior(indices, LABELS), prior(indices, LABELS))
    assert found.prior.train()(indices).not_equal(prior(indices)).any()  # the dropout has come along


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name if name == "GatedPixelCNN" else pytest.param(name, marks=pytest.mark.slow) for name in VARIANTS]
)
def test_prior_overfits_two_images(name: str) -> None:
    """With classes they take no bits. Without classes they take the one bit that distinguishes the two, and no less."""
    torch.manual_seed(0)
    named, nameless = (
        type(prior)(**prior.init_args) for prior in (small(name, classes=2, depth=2), small(name, classes=0, depth=2))
    )
    images, labels = some_indices(named, 2), torch.tensor([0, 1])
    for prior, given in ((named, labels), (nameless, None)):
        optimizer = torch.optim.Adam(prior.parameters(), 1e-2)
        for _ in range(120):
            optimizer.zero_grad()
            logits = prior(images, given)
            torch.nn.functional.cross_entropy(logits.flatten(0, 1), prior.sequence(images).flatten()).backward()
            optimizer.step()
    before = math.log2(named.codebook_size) * math.prod(named.shape)
    assert before > 25
    assert float(named.bits(images, labels).max()) < 0.5
    assert 2.0 <= float(nameless.bits(images).sum()) < 2.5


@every_prior
def test_invalid_prior_inputs_and_arguments_are_refused(name: str) -> None:
    prior = small(name)
    indices = some_indices(prior)
    with pytest.raises(UserError, match="prior needs images with"):
        prior(indices[:, :1])
    with pytest.raises(UserError, match="class 3 is unknown; the prior was trained with 3 classes"):
        prior(indices, torch.tensor([0, 1, 3]))
    with pytest.raises(UserError, match=r"labels must be \(3,\)"):
        prior(indices, torch.tensor([0]))
    for wrong in ({"codebook_size": 1}, {"depth": 0}, {"width": True}, {"classes": -1}, {"dropout": 1.0}):
        with pytest.raises(UserError, match=f"{next(iter(wrong))} is "):
            type(prior)(**{**prior.init_args, **wrong})
    with pytest.raises(UserError, match=r"must be \(h, w\) or \(Q, h, w\)"):
        type(prior)(**{**prior.init_args, "shape": (4,)})


def test_pixelcnn_refuses_residual_levels() -> None:
    with pytest.raises(UserError, match="use the transformer"):
        GatedPixelCNN(codebook_size=4, shape=(2, 4, 4))
