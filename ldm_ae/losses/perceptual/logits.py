"""The distance of a classifier's logits.

Source: MaskBit, arXiv 2409.16211 (ResNet-50 in place of LPIPS; github.com/markweberdev/maskbit), and TA-TiTok, arXiv
2501.07730 (ConvNeXt-S beside LPIPS; github.com/bytedance/1d-tokenizer): the mean squared difference of the logits over
classes and images, which are resized to 224 pixels. Both resize by bilinear interpolation with antialiasing, here it is
bicubic, and take torchvision's weights; `microsoft/resnet-50` and `facebook/convnext-small-224` are other trainings of
the same networks, so that a published weight is a starting point here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ldm_ae.core.errors import UserError
from ldm_ae.features import FeatureNetwork
from ldm_ae.losses.perceptual.interface import PerceptualLoss


class LogitDistance(PerceptualLoss):
    """Mean squared difference of logits.

    Args:
        features: A network with a classifier: `ResNet50`, `ConvNeXt` or `EfficientNetLite0`, the published ones with
            `image_size: 224`.
    """

    short_names = ("logits",)

    def __init__(self, *, features: FeatureNetwork):
        if not features.has_classifier:
            raise UserError(
                f"LogitDistance needs a classifier, which {type(features).__name__} does not have here; use ResNet50, "
                "ConvNeXt or EfficientNetLite0 with all of its stages"
            )
        super().__init__(f"{features.name}_logits")
        self.features = features

    @classmethod
    def example(cls) -> LogitDistance:
        from ldm_ae.features import ResNet50

        return cls(features=ResNet50.example())

    @property
    def identity(self) -> str:
        return f"{self.name} of {self.features.identity}"

    def forward(self, reconstructions: Tensor, pixel_values: Tensor) -> Tensor:
        with torch.autocast(pixel_values.device.type, enabled=False):
            with torch.no_grad():
                real = self.features.logits(pixel_values)
            return (self.features.logits(reconstructions) - real).square().mean(dim=1)
