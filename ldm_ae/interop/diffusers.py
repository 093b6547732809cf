"""Export to a diffusers model folder, with the scale that its latents really have.

`AutoencoderKL.from_pretrained(OUT)` opens it. Pipelines divide by `scaling_factor` before they decode; it is
1 / (standard deviation of the latents over a whole data set), where LDM (arXiv 2112.10752, appendix G) takes the first
batch's.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from ldm_ae.data import Batch, seeded_noise
from ldm_ae.errors import UserError
from ldm_ae.interop.folder import exporting
from ldm_ae.models import Autoencoder, ChannelStatistics
from ldm_ae.models.folder import WEIGHTS

DIFFUSERS_FILES = frozenset({"config.json", WEIGHTS})


@torch.inference_mode()
def measure_scaling(
    model: Autoencoder, loader: Iterable[Batch], *, progress: Callable[[int], None] | None = None
) -> ChannelStatistics:
    """Per-channel statistics of one posterior sample per image, with each sample's own noise.

    Args:
        model: In eval mode, on the device to run on.
        loader: Batches of images, usually an `EvaluationLoader`.
        progress: Called with the number of images done after every batch.
    """
    statistics = ChannelStatistics(model.latent_spec.channels)
    device = model.last_layer.device
    done = 0
    for batch in loader:
        posterior = model.encode(batch.pixel_values.to(device))
        shape = posterior.mode().shape[1:]
        statistics.update(posterior.sample(noise=seeded_noise(batch.seeds, tuple(shape)).to(device)))
        done += len(batch.keys)
        if progress is not None:
            progress(done)
    return statistics


def export_diffusers(
    model: Autoencoder,
    out: str | Path,
    *,
    scaling: ChannelStatistics | None = None,
    per_channel: bool = False,
    weights: torch.dtype = torch.float32,
    sample_size: int | None = None,
) -> Path:
    """Write the model as a diffusers folder; an earlier export at `out` is replaced in one rename.

    Args:
        model: What to export; it is not changed.
        out: The folder.
        scaling: Measured statistics, which set `scaling_factor`; None keeps what the model's configuration says.
        per_channel: Write `latents_mean` and `latents_std` too, for trainers that read them. The pipelines of Stable
            Diffusion and DiT ignore them, so latents scaled by them must not be decoded by those.
        weights: What the weights are written in. Rounded ones are another model, of another `model_hash`.
        sample_size: Side in pixels that the configuration names and that commands take by default; None keeps the side
            of the training crops.

    Returns:
        `out`.

    Raises:
        UserError: `out` holds other files or cannot be written, the statistics give no scale, the size does not suit
            the model, or a weight leaves the range of the type.
    """
    model = copy.deepcopy(model).float()
    if scaling is not None:
        if scaling.count == 0 or not 0.0 < scaling.pooled_std < float("inf"):
            raise UserError(
                f"no scale can be measured: {scaling.count} latent values per channel with standard deviation "
                f"{scaling.pooled_std}; give more images"
            )
        model.set_scaling(
            scaling_factor=1.0 / scaling.pooled_std,
            latents_mean=tuple(scaling.channel_mean.tolist()) if per_channel else None,
            latents_std=tuple(scaling.channel_std.tolist()) if per_channel else None,
        )
    if sample_size is not None:
        model.latent_spec.latent_size(sample_size, sample_size)
        model.set_sample_size(sample_size)
    model.to(weights)
    if weights != torch.float32:
        for name, tensor in model.net.state_dict().items():
            if not tensor.isfinite().all():
                raise UserError(f"{name} has values that {weights} cannot hold; write the weights in float32")
    size = sum(tensor.nbytes for tensor in model.net.state_dict().values())
    with exporting(out, own_files=DIFFUSERS_FILES, size=size) as folder:
        model.save_pretrained(folder)
    return Path(out)
