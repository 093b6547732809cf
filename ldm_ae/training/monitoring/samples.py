"""The sample images of a run: the same few images at every step, so that two steps can be compared."""

from __future__ import annotations

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ldm_ae.data import EvaluationLoader, TrainingLoader
from ldm_ae.evaluation import comparison_grid, legible
from ldm_ae.evaluation.report.pictures import ERROR_GAIN
from ldm_ae.images.missing import fill
from ldm_ae.images.transforms import ImageTransform
from ldm_ae.images.views import View, shown_view
from ldm_ae.models import Autoencoder
from ldm_ae.models.inference import in_eval_mode

SAMPLE_IMAGES = 8
_HEADER = 16
"""Height in pixels of the line of text above the images."""
_BACKGROUND, _TEXT = (64, 64, 64), (235, 235, 235)
"""Colours around the images: a neutral grey, which fits light and dark pages."""


class Samples:
    """Fixed images, their reconstructions and errors.

    The images are the first of the validation set, or of the training images if the run has no validation. They are
    decoded when the run starts, by the transform of the validation, so a resumed run has the same ones.

    Args:
        training: The training images.
        validation: The validation images, or None.
        transform: The transform of the validation.
        batch_size: Number of images of one forward pass.
        autocast_dtype: The dtype of the validation's forward passes; None is the model's own.
        view: `objective.view`, by which images that are not RGB are drawn; None is the default of the images.

    Raises:
        UserError: None of the images can be decoded.
    """

    def __init__(
        self,
        training: TrainingLoader,
        validation: EvaluationLoader | None,
        transform: ImageTransform,
        *,
        batch_size: int,
        autocast_dtype: torch.dtype | None,
        view: View | None = None,
    ):
        self.kind = "training" if validation is None else "validation"
        self.pixel_values: Tensor = (
            training.first(SAMPLE_IMAGES, transform) if validation is None else validation.first(SAMPLE_IMAGES)
        )
        """(B, C, H, W) in [-1, 1]."""
        self._batch_size, self._autocast_dtype, self._view = batch_size, autocast_dtype, view

    def _shown(self, model: Autoencoder, pixel_values: Tensor, reconstructions: Tensor) -> tuple[Tensor, Tensor]:
        """Return the RGB images that are drawn."""
        if model.pixel_spec.missing is not None:
            reconstructions, pixel_values = fill(reconstructions, pixel_values, -1.0)
        view = shown_view(model.pixel_spec, self._view)
        if view is None:
            return pixel_values, reconstructions
        return view.single(pixel_values), view.single(reconstructions)

    def file_name(self, step: int) -> str:
        """Return the name of the file of a step; it names training images."""
        return f"step-{step:08d}.png" if self.kind == "validation" else f"step-{step:08d}-training-images.png"

    def draw(self, model: Autoencoder, step: int, weights: str) -> Image.Image:
        """Draw each original above its reconstruction and its error, below a line of text.

        The reconstructions are decoded from the posterior's mode in eval mode; nothing random is drawn. Small
        images are enlarged (`legible`).

        Args:
            model: A model on its device, in any mode.
            step: The step, for the text.
            weights: The name of the model's weights, for the text.
        """
        device, dtype = model.device, self._autocast_dtype
        found = []
        with in_eval_mode(model), torch.no_grad():
            for images in self.pixel_values.split(self._batch_size):
                with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
                    found.append(model.decode(model.encode(images.to(device)).mode()).float().cpu())
        pair = self._shown(model, self.pixel_values, torch.cat(found).nan_to_num())
        grid = comparison_grid(*map(legible, pair), background=_BACKGROUND, errors=True)
        text = f"step {step}, {weights}: {self.kind} images, reconstructions, errors x{ERROR_GAIN:.0f}"
        # All steps have one width.
        left, _, right, _ = ImageDraw.Draw(grid).textbbox((2, 2), text.replace(str(step), "0" * 8, 1))
        canvas = Image.new("RGB", (max(grid.width, int(right + left)), grid.height + _HEADER), _BACKGROUND)
        ImageDraw.Draw(canvas).text((2, 2), text, fill=_TEXT)
        canvas.paste(grid, (0, _HEADER))
        return canvas
