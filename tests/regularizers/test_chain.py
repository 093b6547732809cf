"""Several regularizers in a row."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ldm_ae.core.draws import REGULARIZER, Draws
from ldm_ae.core.errors import UserError
from ldm_ae.models import GaussianPosterior, KLAutoencoder
from ldm_ae.regularizers import Chain, GaussianNoise, Identity, Regularized, Regularizer
from ldm_ae.regularizers.eq_vae import EQVAE
from ldm_ae.regularizers.free_bits import FreeBits
from ldm_ae.regularizers.normalized_latents import NormalizedLatents
from ldm_ae.regularizers.scale_equivariance import ScaleEquivariance
from tests.training.doubles import Turn


class Affine(Regularizer):
    """z' = a z + b, and the term `size`."""

    def __init__(self, a: float, b: float):
        super().__init__()
        self.a, self.b = a, b

    def forward(self, posterior: Any, latents: Tensor, pixel_values: Tensor, draws: Draws) -> Regularized:
        terms = {"size": torch.full((len(latents),), self.b)}
        return Regularized(self.a * latents + self.b, pixel_values, terms)


class Seen(Regularizer):
    """Records the images that it is given."""

    def __init__(self, takes_target: bool):
        super().__init__()
        self.takes_target = takes_target
        self.images: list[Tensor] = []

    def forward(self, posterior: Any, latents: Tensor, pixel_values: Tensor, draws: Draws) -> Regularized:
        self.images.append(pixel_values)
        return Regularized(latents, pixel_values)


def applied(chain: Chain, *, step: int = 0) -> tuple[Regularized, Tensor, Tensor]:
    """The result for fixed latents and images of a model with a downsample factor of 2, and these."""
    chain.prepare(KLAutoencoder.example("AutoencoderKL"))
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 4, 8, 8, generator=generator)
    images = torch.rand(2, 3, 16, 16, generator=generator)
    posterior = GaussianPosterior(torch.cat([latents, torch.zeros_like(latents)], dim=1))
    return chain(posterior, latents, images, Draws([3, 4], REGULARIZER, step)), latents, images


def test_order_matters_and_terms_of_one_name_are_numbered() -> None:
    found, latents, images = applied(Chain(regularizers=(Affine(2.0, 1.0), Affine(3.0, 5.0), Affine(1.0, 0.0))))
    assert torch.allclose(found.latents, 3 * (2 * latents + 1) + 5)
    assert found.target is images
    assert {name: term.tolist() for name, term in found.terms.items()} == {
        "size": [1.0, 1.0], "size_2": [5.0, 5.0], "size_3": [0.0, 0.0],
    }  # fmt: skip
    found, latents, _ = applied(Chain(regularizers=(Affine(3.0, 5.0), Affine(2.0, 1.0))))
    assert torch.allclose(found.latents, 2 * (3 * latents + 5) + 1)


def test_transformed_targets_reach_the_parts_that_act_on_them() -> None:
    """What compares with the encoded images gets these; a second decode is compared with the transformed target."""
    compares, transforms = Seen(False), Seen(True)
    chain = Chain(regularizers=(EQVAE(probability=1.0, smallest_scale=0.5), compares, transforms, ScaleEquivariance()))
    found, latents, images = applied(chain)
    assert found.latents.shape[-1] < latents.shape[-1]
    assert found.target.shape[-1] == 2 * found.latents.shape[-1]
    assert compares.images[0] is images
    assert transforms.images[0] is found.target
    (further,) = found.further
    assert further.latents.shape[-1] == max(
        1, found.latents.shape[-1] * further.target.shape[-1] // found.target.shape[-1]
    )
    assert further.target.shape[-1] == 2 * further.latents.shape[-1]


def test_second_decodes_of_one_name_are_numbered() -> None:
    found, _, _ = applied(Chain(regularizers=(ScaleEquivariance(factors=(2,)), ScaleEquivariance(factors=(4,)))))
    assert [further.name for further in found.further] == ["scale_equivariance", "scale_equivariance_2"]
    assert [further.latents.shape[-1] for further in found.further] == [4, 2]


def test_undeclared_change_of_the_target_is_refused() -> None:
    with pytest.raises(UserError, match="Turn changes the target, but does not declare it"):
        applied(Chain(regularizers=(Turn(),)))


def test_state_and_identity_are_those_of_all_parts() -> None:
    chain = Chain(regularizers=(GaussianNoise(), Turn(), NormalizedLatents()))
    chain.prepare(KLAutoencoder.example("AutoencoderKL"))
    assert chain.identity == "Chain of GaussianNoise, Turn, NormalizedLatents"
    state = chain.state_dict()
    learned = {"running_mean", "running_var", "updates"}
    assert set(state) == {"regularizers.1.gain", *(f"regularizers.2.{name}" for name in learned)}  # nothing frozen
    assert len(list(chain.learning_parameters())) == 1
    other = Chain(regularizers=(GaussianNoise(), Turn(), NormalizedLatents()))
    other.prepare(KLAutoencoder.example("AutoencoderKL"))
    state = {name: torch.full_like(tensor, 7) for name, tensor in state.items()}
    other.load_state_dict(state)  # strict
    assert all(torch.equal(tensor, state[name]) for name, tensor in other.state_dict().items())
    assert not other.train().regularizers[1].features.training


def test_every_part_is_prepared_and_verified() -> None:
    calls: list[str] = []

    class Recorder(Identity):
        def prepare(self, model: Any) -> None:
            calls.append("prepare")

        def verify(self, pixel_values: Tensor) -> None:
            calls.append("verify")

    chain = Chain(regularizers=(Recorder(), Recorder()))
    chain.prepare(KLAutoencoder.example("AutoencoderKL"))
    chain.verify(torch.zeros(1, 3, 8, 8))
    assert calls == ["prepare", "prepare", "verify", "verify"]


def test_parts_draw_the_numbers_that_they_draw_alone() -> None:
    """The first part's draws do not depend on later parts, and what the step shares is the same in any place."""
    noise = GaussianNoise()
    alone, _, _ = applied(Chain(regularizers=(noise,)))
    together, _, _ = applied(Chain(regularizers=(noise, FreeBits())))
    assert torch.equal(alone.latents, together.latents)
    assert set(together.terms) == {"free_bits_kl"}
    first, _, _ = applied(Chain(regularizers=(EQVAE(probability=1.0), Identity())), step=5)
    second, _, _ = applied(Chain(regularizers=(Identity(), noise, EQVAE(probability=1.0))), step=5)
    assert torch.equal(first.target, second.target)


def test_empty_chain_changes_nothing() -> None:
    found, latents, images = applied(Chain())
    assert found.latents is latents
    assert found.target is images
    assert found.terms == {}
    assert found.further == ()
