"""The losses, one folder per family and one file per loss, and the objective that adds them up.

```python
import torch

from ldm_ae.losses import L1, Objective, ObjectiveConfig, ShiftTolerantLPIPS

objective = Objective(ObjectiveConfig(reconstruction=L1(), perceptual=ShiftTolerantLPIPS(net="alex")))
pixel_values = torch.rand(2, 3, 64, 64) * 2 - 1  # (B, 3, H, W) in [-1, 1]
terms = objective.reconstruction(0.9 * pixel_values, pixel_values)
print(terms.nll, terms.rec_loss, terms.perceptual_loss)
```

`ldm_ae.training.TrainingLosses` adds the model, a discriminator and a regularizer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ldm_ae.core.registry import export
from ldm_ae.losses.adversarial import ADVERSARIAL_LOSSES, AdversarialLoss, HingeLoss, NonSaturatingLoss, VanillaLoss
from ldm_ae.losses.objective import Objective, ObjectiveConfig, ReconstructionTerms
from ldm_ae.losses.perceptual import (
    LPIPS,
    PERCEPTUAL_LOSSES,
    DeepFeatures,
    FeatureDistance,
    GramDistance,
    LogitDistance,
    MSSSIMDistance,
    PerceptualLoss,
    ShiftTolerantLPIPS,
    SSIMDistance,
    WeightedSum,
)
from ldm_ae.losses.reconstruction import (
    L1,
    L2,
    RECONSTRUCTION_LOSSES,
    AlphaAware,
    Bernoulli,
    Charbonnier,
    DiscretizedLogistic,
    Gaussian,
    LatticeError,
    Likelihood,
    OpponentL1,
    ReconstructionLoss,
    WeightedReconstruction,
)

__all__ = [
    "ADVERSARIAL_LOSSES",
    "L1",
    "L2",
    "LPIPS",
    "PERCEPTUAL_LOSSES",
    "RECONSTRUCTION_LOSSES",
    "AdversarialLoss",
    "AlphaAware",
    "Bernoulli",
    "Charbonnier",
    "DeepFeatures",
    "DiscretizedLogistic",
    "FeatureDistance",
    "Gaussian",
    "GramDistance",
    "HingeLoss",
    "LatticeError",
    "Likelihood",
    "LogitDistance",
    "MSSSIMDistance",
    "NonSaturatingLoss",
    "Objective",
    "ObjectiveConfig",
    "OpponentL1",
    "PerceptualLoss",
    "ReconstructionLoss",
    "ReconstructionTerms",
    "SSIMDistance",
    "ShiftTolerantLPIPS",
    "VanillaLoss",
    "WeightedReconstruction",
    "WeightedSum",
]

if not TYPE_CHECKING:  # a type checker needs only the imports above

    def __getattr__(name: str) -> Any:
        return export(__name__, name, RECONSTRUCTION_LOSSES, PERCEPTUAL_LOSSES, ADVERSARIAL_LOSSES)
