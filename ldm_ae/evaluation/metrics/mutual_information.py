"""Information of latents about the image; see `ldm_ae.representation.information.aggregate_posterior`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from ldm_ae.evaluation.metrics._of_moments import MomentsMetric
from ldm_ae.evaluation.metrics.interface import CannotScoreError, ScoreInfo, Scores
from ldm_ae.representation.information.aggregate_posterior import information

IMAGES, NUMBERS = 2048, 2**24
"""The first images are used: at most IMAGES, and so many that they have at most NUMBERS latents."""


class MutualInformation(MomentsMetric):
    """Mutual information of image and latents, its limit, and the KL of the aggregate posterior to the prior."""

    name = "mutual_information"
    label = "Mutual information"
    scores: ClassVar[Mapping[str, ScoreInfo]] = {
        "mutual_information": ScoreInfo(
            label="Mutual information", unit="nats", group="latents", reliable_images=1000,
            explanation="Information of a draw of the latents about which image it is. At its limit: at least so much."
        ),
        "mutual_information_limit": ScoreInfo(
            label="Mutual information, limit", unit="nats", group="latents",
            explanation="Log of the number of images, the largest value that can be found with these images."
        ),
        "aggregate_kl": ScoreInfo(
            label="KL of the aggregate posterior", unit="nats", group="latents", reliable_images=1000,
            explanation="KL of all images' posteriors together to the prior: the rate minus the mutual information. "
            "Where the information is at its limit, an upper bound."
        ),
    }  # fmt: skip

    def reset(self) -> None:
        """Discard all images."""
        super().reset()
        self._means: list[Tensor] = []
        self._log_variances: list[Tensor] = []
        self._images = 0

    def add(self, means: Tensor, log_variances: Tensor) -> None:
        """Keep the images of a batch that are still used."""
        room = min(IMAGES, max(NUMBERS // means.shape[1], 2)) - self._images
        self._means.append(means[:room])
        self._log_variances.append(log_variances[:room])
        self._images += len(self._means[-1])

    def compute(self) -> Scores:
        """Return the three numbers in nats.

        Raises:
            CannotScoreError: There is only one image.
        """
        if self._images < 2:
            raise CannotScoreError(f"{self.label} needs at least 2 images")
        found = information(torch.cat(self._means), torch.cat(self._log_variances))
        return {
            "mutual_information": found.mutual_information,
            "mutual_information_limit": found.limit,
            "aggregate_kl": found.aggregate_kl,
        }

    def protocol(self) -> dict[str, object]:
        """Return how the aggregate posterior is estimated."""
        return {
            "mutual_information": {
                "aggregate_posterior": "mixture of the posteriors of the images used, one draw of each",
                "images": f"the first {IMAGES}, or as many as have {NUMBERS} latents together",
                "seed": 0,
            }
        }
