"""Export to a diffusers model folder, with the measured scale of its latents.

`AutoencoderKL.from_pretrained(OUT)` opens it. Pipelines divide by `scaling_factor` before they decode; it is
1 / (standard deviation of the latents over a whole data set), where LDM (arXiv 2112.10752, appendix G) uses the first
batch's. `ldm_ae.models.scaling` lists the forms of a scale and the pipelines that read each form.
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch

from ldm_ae.core.errors import UserError
from ldm_ae.interop.folder import exporting
from ldm_ae.models import Autoencoder, ChannelStatistics
from ldm_ae.models.loading.weights import WEIGHTS
from ldm_ae.models.scaling import mark_scaled_encoder, measured_scaling, scale_is_known, set_scaling_of

DIFFUSERS_FILES = frozenset({"config.json", WEIGHTS})


def export_diffusers(
    model: Autoencoder,
    out: str | Path,
    *,
    scaling: ChannelStatistics | None = None,
    per_channel: bool | None = None,
    weights: torch.dtype = torch.float32,
    sample_size: int | None = None,
    overwrite: bool = False,
) -> Path:
    """Write the model as a diffusers folder, which appears in one rename.

    Args:
        model: The model to export; it is not changed.
        out: The folder.
        scaling: Measured statistics, which replace the scale; None keeps the scale of the model's configuration.
        per_channel: Measure `latents_mean` and `latents_std`, for SDXL's pipelines and trainers that read them. The
            pipelines of Stable Diffusion, Kolors, DiT, SD3 and FLUX ignore them and would decode wrongly. False writes
            none; None writes them if the model has them.
        weights: Dtype of the written weights. Rounded weights are another model, with another `model_hash`.
        sample_size: Side in pixels that the configuration states and that commands use by default; None keeps the side
            of the training crops.
        overwrite: Replace an earlier export at `out`.

    Returns:
        `out`.

    Raises:
        UserError: `out` holds files that may not be replaced or cannot be written, the statistics give no scale in this
            form, the size does not suit the model, or a weight leaves the range of the type.
    """
    model = copy.deepcopy(model).float()
    if scaling is not None:
        set_scaling_of(model, measured_scaling(model.latent_spec, scaling, per_channel=per_channel))
    if sample_size is not None:
        model.latent_spec.latent_size(sample_size, sample_size)
        model.set_sample_size(sample_size)
    if weights != torch.float32:
        known = scale_is_known(model)
        model.to(weights)
        if known:  # even after rounding, the scale belongs to this encoder
            mark_scaled_encoder(model)
        for name, tensor in model.net.state_dict().items():
            if not tensor.isfinite().all():
                raise UserError(f"{name} has values that {weights} cannot hold; write the weights in float32")
    size = sum(tensor.nbytes for tensor in model.net.state_dict().values())
    with exporting(out, own_files=DIFFUSERS_FILES, size=size, overwrite=overwrite) as folder:
        model.save_pretrained(folder)
    return Path(out)
