"""Several regularizers, one after the other."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from torch import Tensor, nn

from ldm_ae.core.draws import Draws
from ldm_ae.core.errors import UserError
from ldm_ae.images.buckets import Size
from ldm_ae.images.views import View
from ldm_ae.models import Autoencoder, LatentSpec, Posterior
from ldm_ae.regularizers.interface import Further, Regularized, Regularizer


class Chain(Regularizer):
    """Applies regularizers in their order: each takes the latents that the one before it gives.

    In YAML, a list is a chain: `regularizer: [eq-vae, noise]`. The order matters where several change latents:
    `[eq-vae, noise]` adds noise to scaled latents, `[noise, eq-vae]` scales the noise too. Terms of equal names are
    numbered from the second on: `alignment`, `alignment_2`.

    Args:
        regularizers: The regularizers; an empty list changes nothing.
    """

    def __init__(self, *, regularizers: tuple[Regularizer, ...] = ()):
        super().__init__()
        self.regularizers = nn.ModuleList(regularizers)

    @classmethod
    def example(cls) -> Chain:
        from ldm_ae.regularizers.eq_vae import EQVAE
        from ldm_ae.regularizers.gaussian_noise import GaussianNoise

        return cls(regularizers=(EQVAE(), GaussianNoise()))

    def _all(self) -> Iterator[Regularizer]:
        for regularizer in self.regularizers:
            assert isinstance(regularizer, Regularizer)
            yield regularizer

    @property
    def identity(self) -> str:
        return f"{super().identity} of {', '.join(each.identity for each in self._all())}"

    @property
    def adaptive_terms(self) -> frozenset[str]:  # type: ignore[override]  # of an instance, not of the class
        """Those of all regularizers, numbered as the terms are."""
        found: list[str] = []
        for each in self._all():
            found += [_numbered(name, found) for name in sorted(each.adaptive_terms)]
        return frozenset(found)

    @property
    def needed_terms(self) -> frozenset[str]:  # type: ignore[override]  # likewise
        """Those of all regularizers, numbered as the terms are."""
        found: list[str] = []
        for each in self._all():
            found += [_numbered(name, found) for name in sorted(each.needed_terms)]
        return frozenset(found)

    @property
    def mixes_samples(self) -> bool:  # type: ignore[override]  # likewise
        return any(each.mixes_samples for each in self._all())

    def learning_buffers(self) -> Iterator[Tensor]:
        return (buffer for each in self._all() for buffer in each.learning_buffers())

    def see(self, view: View | None) -> None:
        super().see(view)
        for each in self._all():
            each.see(view)

    def prepare(self, model: Autoencoder) -> None:
        for each in self._all():
            each.prepare(model)

    def verify(self, pixel_values: Tensor) -> None:
        for each in self._all():
            each.verify(pixel_values)

    def count_images(self, count: int) -> None:
        for each in self._all():
            each.count_images(count)

    def scale(self, model: Autoencoder) -> LatentSpec | None:
        """Return the scale of the last regularizer that has one."""
        found = [scale for each in self._all() if (scale := each.scale(model)) is not None]
        return found[-1] if found else None

    def image_sizes(self, size: Size, *, judged: bool) -> Sequence[Size]:
        sizes = judged_sizes = [size]
        for each in self._all():
            more = [one for given in judged_sizes for one in each.image_sizes(given, judged=False)]
            sizes = list(dict.fromkeys([*sizes, *more]))
            more = [one for given in judged_sizes for one in each.image_sizes(given, judged=True)]
            judged_sizes = list(dict.fromkeys([*judged_sizes, *more]))
        return judged_sizes if judged else sizes

    def encoded_images(self, pixel_values: Tensor, draws: Draws) -> Tensor:
        for each in self._all():
            pixel_values = each.encoded_images(pixel_values, draws)
        return pixel_values

    def learn(self, posteriors: Sequence[Posterior]) -> dict[str, Tensor]:
        logs: dict[str, Tensor] = {}
        for each in self._all():
            logs |= each.learn(posteriors)
        return logs

    def forward(self, posterior: Posterior, latents: Tensor, pixel_values: Tensor, draws: Draws) -> Regularized:
        target, terms, further = pixel_values, dict[str, Tensor](), list[Further]()
        for each in self._all():
            given = target if each.takes_target else pixel_values
            found: Regularized = each(posterior, latents, given, draws)
            latents = found.latents
            if each.takes_target:
                target = found.target
            elif found.target is not pixel_values:
                raise UserError(
                    f"{type(each).__name__} changes the target, but does not declare it; set its attribute "
                    "takes_target to True"
                )
            for name, term in found.terms.items():
                terms[_numbered(name, terms)] = term
            for more in found.further:
                further.append(more._replace(name=_numbered(more.name, [one.name for one in further])))
        return Regularized(latents, target, terms, tuple(further))


def _numbered(name: str, taken: Collection[str]) -> str:
    """Return the name, with the first number from 2 on that makes it new where it is taken."""
    if name not in taken:
        return name
    return next(new for number in range(2, len(taken) + 2) if (new := f"{name}_{number}") not in taken)
