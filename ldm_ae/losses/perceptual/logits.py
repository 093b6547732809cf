"""The distance of a classifier's logits.

Source: MaskBit, arXiv 2409.16211 (ResNet-50 in place of LPIPS; github.com/markweberdev/maskbit), and TA-TiTok, arXiv
2501.07730 (ConvNeXt-S beside LPIPS; github.com/bytedance/1d-tokenizer): the mean squared difference of the logits over
classes and images, which are resized to 224 pixels. Both resize by bilinear interpolation with antialiasing, here it is
bicubic, and take torchvision's weights; `microsoft/resnet-50` and `facebook/convnext-small-224` are other trainings of
the same networks, so that a published weight is a starting point here.
"""

from __future__ import annotations

from torch import Tensor

from ldm_ae.core.errors import UserError
from ldm_ae.features import FeatureNetwork
from ldm_ae.losses.perceptual._of_features import FeatureLoss


class LogitDistance(FeatureLoss):
    """Mean squared difference of logits.

    Args:
        features: A network with a classifier: `ResNet50`, `ConvNeXt` or `EfficientNetLite0`, the published ones with
            `image_size: 224`.
    """

    short_names = ("logits",)
    kind = "logits"
    example_network = "ResNet50"

    def __init__(self, *, features: FeatureNetwork):
        if not features.has_classifier:
            raise UserError(
                f"LogitDistance needs a classifier, which {type(features).__name__} does not have here; use ResNet50, "
                "ConvNeXt or EfficientNetLite0 with all of its stages"
            )
        super().__init__(features)

    def compared(self, pixel_values: Tensor) -> Tensor:
        return self.features.logits(pixel_values)

    def distance(self, found: Tensor, real: Tensor) -> Tensor:
        return (found - real).square().mean(dim=1)
