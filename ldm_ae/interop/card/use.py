"""The card's code that loads the model, and what a diffusion model must do with its latents."""

from __future__ import annotations

from ldm_ae.images.pixels import RGB
from ldm_ae.models import Autoencoder
from ldm_ae.models.scaling import is_unscaled, measures_scale, scale_is_known

_LATENTS = {
    "AutoencoderKL": "latent_dist.mode()", "AsymmetricAutoencoderKL": "latent_dist.mode()",
    "AutoencoderKLFlux2": "latent_dist.mode()", "AutoencoderKLHunyuanImage": "latent_dist.mode()",
    "VQModel": "latents", "AutoencoderTiny": "latents", "AutoencoderDC": "latent",
}  # fmt: skip
"""The latents in the output of `encode`, by class of diffusers; for the others the code only loads the model."""


def class_of_diffusers(model: Autoencoder) -> str | None:
    """Return the name under which diffusers has the network's class; None where it is ours."""
    import diffusers

    name = type(model.net).__name__
    return name if hasattr(diffusers, name) else None


def diffusers_code(model: Autoencoder, repository: str) -> str | None:
    """Return code that loads the model in diffusers, and encodes and decodes; None where diffusers cannot load it."""
    name = class_of_diffusers(model)
    if name is None:
        return None
    if name not in _LATENTS:
        return f'from diffusers import {name}\n\nvae = {name}.from_pretrained("{repository}")\n'
    spec, size = model.latent_spec, _example_size(model)
    height, width = spec.latent_size(size, size)
    channels = model.pixel_spec.channels
    return (
        f'import torch\nfrom diffusers import {name}\n\nvae = {name}.from_pretrained("{repository}").eval()\n'
        f"pixel_values = torch.rand(1, {channels}, {size}, {size}) * 2 - 1  # {model.pixel_spec.words}\n"
        "with torch.no_grad():\n"
        f"    latents = vae.encode(pixel_values).{_LATENTS[name]}  # (1, {spec.channels}, {height}, {width}), "
        f"{'unscaled' if model.codebook is None else 'which decode quantizes'}\n"
        f"    reconstructions = vae.decode(latents).sample  # (1, {channels}, {size}, {size}) in [-1, 1]\n"
    )


def ldm_ae_code(model: Autoencoder, repository: str) -> str:
    """Return code that does the same with this package, from an image file."""
    spec, size = model.latent_spec, _example_size(model)
    shape = f"(1, {spec.channels}, {', '.join(str(side) for side in spec.latent_size(size, size))})"
    if model.pixel_spec != RGB:
        return (
            f'import ldm_ae\n\nmodel = ldm_ae.load("hf:{repository}")\n'
            f"latents = model.encode_images(samples, size={size})  # {shape}, unscaled; samples as stored, (C, H, W)\n"
            "scaled_latents = model.scale(latents)  # what a diffusion model sees\n"
            "(samples,) = model.decode_to_arrays(model.unscale(scaled_latents))\n"
        )
    return (
        f'import ldm_ae\n\nmodel = ldm_ae.load("hf:{repository}")\n'
        f'latents = model.encode_images("photo.jpg", size={size})  # {shape}, unscaled\n'
        "scaled_latents = model.scale(latents)  # what a diffusion model sees\n"
        "(image,) = model.decode_to_pil(model.unscale(scaled_latents))\n"
    )


def _example_size(model: Autoencoder) -> int:
    factor = model.latent_spec.image_multiple
    if model.latent_spec.image_size is not None:
        return model.latent_spec.image_size
    return max(model.sample_size // factor, 1) * factor


def scaling_lines(model: Autoencoder, measured_on: int | None) -> list[str]:
    """Return what pipelines must do with the latents, a paragraph each."""
    if not measures_scale(model):
        return ["A diffusion model sees the latents as they are: the network's class has no scale to apply."]
    spec = model.latent_spec
    lines = _formulas(model)
    if (size := spec.patch_size) > 1:
        lines.append(
            f"The pipeline first packs each {size}×{size} latents into {spec.scaled_channels} channels, and applies "
            "the scale to these; `model.scale` of ldm_ae does both."
        )
    if is_unscaled(spec):
        return lines
    if measured_on is not None:
        lines.append(f"The scale was measured on {measured_on:,} images for this export.")
    elif not scale_is_known(model):
        lines.append("The encoder was trained further since this scale was measured.")
    return lines


def _formulas(model: Autoencoder) -> list[str]:
    spec = model.latent_spec
    factor = f"{spec.scaling_factor!r}"
    if is_unscaled(spec):
        return [
            "The scale of the latents was not measured: the configuration has `scaling_factor` 1. Measure it before "
            "you train a diffusion model: `ldm-ae export MODEL OUT --images IMAGES`."
        ]
    if spec.latents_mean is not None and spec.latents_std is not None:
        times = "" if spec.scaling_factor == 1 else f" * {factor}"
        over = "" if spec.scaling_factor == 1 else f" / {factor}"
        lines = [
            f"A diffusion model sees `(latents - latents_mean) / latents_std{times}`, channel by channel; before "
            f"decoding, `latents = scaled_latents{over} * latents_std + latents_mean`.",
            f"`latents_mean` is `{_list(spec.latents_mean)}`, `latents_std` is `{_list(spec.latents_std)}`. Pipelines "
            "that read only `scaling_factor` or `shift_factor` (Stable Diffusion, DiT, Kolors, SD3, FLUX) ignore these "
            "vectors and would decode wrongly; SDXL's read them.",
        ]
    elif spec.shift_factor:
        lines = [
            f"A diffusion model sees `(latents - {spec.shift_factor!r}) * {factor}`; before decoding, "
            f"`latents = scaled_latents / {factor} + {spec.shift_factor!r}`.",
            "Pipelines that read `shift_factor` (SD3, FLUX) do this; those of Stable Diffusion and SDXL ignore the "
            "shift.",
        ]
    else:
        lines = [
            f"A diffusion model sees `latents * {factor}`; before decoding, `latents = scaled_latents / {factor}`. The "
            "pipelines of diffusers read `scaling_factor` from `config.json` and do this."
        ]
    return lines


def _list(values: tuple[float, ...]) -> str:
    return f"[{', '.join(f'{value:.6g}' for value in values)}]"
