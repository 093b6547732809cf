"""A discriminator together with its aids, which the training steps use like any other discriminator."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import cast

from torch import Tensor, nn

from ldm_ae.core.draws import Draws
from ldm_ae.core.errors import UserError
from ldm_ae.discriminators.aids.interface import DiscriminatorAid
from ldm_ae.discriminators.interface import Discriminator
from ldm_ae.images.pixels import PixelSpec
from ldm_ae.images.views import View


class AidedDiscriminator(Discriminator):
    """A discriminator whose hooks are those of its aids, in their order, followed by its own. Aids augment what the
    model's images are, before a view shows them as RGB.

    Args:
        discriminator: The network.
        aids: At least one aid, at most one of each class.

    Raises:
        UserError: Two aids have one class.
    """

    def __init__(self, discriminator: Discriminator, aids: Sequence[DiscriminatorAid]):
        super().__init__()
        names = [type(aid).__name__ for aid in aids]
        for name, count in Counter(names).items():
            if count > 1:
                raise UserError(f"discriminator_aids: expected at most one {name}, got {count}; remove {count - 1}")
        self.discriminator = discriminator
        self.aids = nn.ModuleDict(dict(zip(names, aids, strict=True)))
        self.pixels = discriminator.pixels
        self.needs_double_backward = discriminator.needs_double_backward or any(
            aid.needs_double_backward for aid in aids
        )

    @property
    def identity(self) -> str:
        return self.discriminator.identity

    def prepare(self, pixels: PixelSpec, view: View | None = None) -> None:
        self.discriminator.prepare(pixels, view)
        self.pixels = self.discriminator.pixels
        for aid in self._each():
            aid.prepare(self.pixels)

    def forward(self, pixel_values: Tensor) -> Tensor:
        logits: Tensor = self.discriminator(pixel_values)
        return logits

    def augment(self, pixel_values: Tensor, draws: Draws) -> Tensor:
        for aid in self._each():
            pixel_values = aid.augment(pixel_values, draws)
        return self.discriminator.augment(pixel_values, draws)

    def penalty(self, real: Tensor, fake: Tensor, logits: tuple[Tensor, Tensor], step: int) -> Tensor | None:
        found = [aid.penalty(self.discriminator, real, fake, logits, step) for aid in self._each()]
        found.append(self.discriminator.penalty(real, fake, logits, step))
        terms = [term.float() for term in found if term is not None]
        return sum(terms[1:], start=terms[0]) if terms else None

    def learn(self, logits_real: Tensor, logits_fake: Tensor) -> None:
        for aid in self._each():
            aid.learn(logits_real, logits_fake)
        self.discriminator.learn(logits_real, logits_fake)

    def saved_parts(self) -> dict[str, nn.Module]:
        return self.discriminator.saved_parts() | {"discriminator_aids": self.aids}

    def _each(self) -> Iterator[DiscriminatorAid]:
        return (cast(DiscriminatorAid, aid) for aid in self.aids.values())


def with_aids(discriminator: Discriminator | None, aids: Sequence[DiscriminatorAid]) -> Discriminator | None:
    """Return the discriminator with its aids; without aids, the discriminator itself.

    Raises:
        UserError: There are aids but no discriminator, or two aids of one class.
    """
    if not aids:
        return discriminator
    if discriminator is None:
        raise UserError("discriminator_aids has no effect without a discriminator; set discriminator, or remove it")
    return AidedDiscriminator(discriminator, aids)
