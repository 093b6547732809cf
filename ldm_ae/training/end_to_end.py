"""The pipeline of a run with the regularizer `EndToEnd`: its autoencoder and the averaged weights of its SiT.

DiTPipeline decodes latents / scaling_factor, one number. The SiT's latents are (z - mean) / std of each channel, so the
1x1 convolutions around the latents of the pipeline's autoencoder contain this change: the same images from a
scaling_factor of 1. The model of the run has mean and std as `latents_mean` and `latents_std`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL

from ldm_ae.core.errors import UserError
from ldm_ae.core.seeding import derive_seed
from ldm_ae.diffusion import HEAD_WIDTH, NO_CLASS, build_sit
from ldm_ae.io.files import writing_folder
from ldm_ae.io.tensor_files import read_tensors
from ldm_ae.models import Autoencoder, KLAutoencoder, load_autoencoder
from ldm_ae.models.loading.checkpoints import CHECKPOINTS
from ldm_ae.training.checkpoints.checkpoint import newest_checkpoint
from ldm_ae.training.configuration.parsing import config_parser, parse_config
from ldm_ae.training.configuration.spelling import asks_for_help
from ldm_ae.training.diffusion.networks import build_pipeline
from ldm_ae.training.diffusion.pipeline_run import PIPELINE, image_grid
from ldm_ae.training.run import train_parsed

GENERATED_IMAGES, SAMPLING_STEPS = 8, 50
_EMBEDDING = "pos_embed.proj.weight"


def train_end_to_end(arguments: Sequence[str]) -> Path:
    """Train as arguments of `ldm-ae train` specify, and return the run directory; `train` of `run.py` for a model of
    which a pipeline can be made.

    Raises:
        UserError: An error that the user can fix.
        RunError: The run cannot continue.
        Stopped: A signal ended the run; it is saved.
    """
    summary = "Train an autoencoder and a diffusion transformer together."
    parser = config_parser(summary, described=asks_for_help(arguments))
    config = parse_config(arguments, parser)
    if (name := config.model.class_path.rpartition(".")[2]) != KLAutoencoder.__name__:
        raise UserError(
            f"model: expected KLAutoencoder, which DiTPipeline decodes, got {name}; choose another --config"
        )
    return train_parsed(config, parser)


def write_pipeline(run: Path) -> tuple[Path, Path]:
    """Write RUN/pipeline from the newest checkpoint, and an image with samples of it, from the same noise each time.

    Returns:
        The folder of the pipeline, and the file of the samples.

    Raises:
        UserError: There is no valid checkpoint, it has no SiT, or its autoencoder is not one that DiTPipeline decodes.
    """
    checkpoint, damaged = newest_checkpoint(run / CHECKPOINTS)
    if checkpoint is None:
        why = next((f": {name}: {reasons[0]}" for name, reasons in damaged.items()), "")
        raise UserError(f"{run} has no valid checkpoint{why}; train first")
    model = load_autoencoder(checkpoint)
    sit = load_sit(checkpoint, model)
    pipeline = build_pipeline("dit", "flow", sit, fold_scale(model))
    pipeline.set_progress_bar_config(disable=True)
    with writing_folder(run / PIPELINE) as temporary:
        pipeline.save_pretrained(temporary)
    images = pipeline(
        [NO_CLASS] * GENERATED_IMAGES, guidance_scale=1.0, num_inference_steps=SAMPLING_STEPS,
        generator=torch.Generator().manual_seed(derive_seed("generated")),
    ).images  # fmt: skip
    samples = run / "samples" / f"generated-{checkpoint.name}.png"
    samples.parent.mkdir(exist_ok=True)
    image_grid(images).save(samples)
    return run / PIPELINE, samples


def load_sit(checkpoint: Path, model: Autoencoder) -> Any:
    """Return the averaged SiT of a checkpoint whose autoencoder is `model`.

    Raises:
        UserError: It has none.
    """
    path = checkpoint / "regularizer.safetensors"
    tensors = read_tensors(path) if path.is_file() else {}
    averaged = {name.replace("/", "."): tensor for name, tensor in tensors.items()}
    end = f"average.{_EMBEDDING}"  # behind the names of a chain of regularizers, if there is one
    prefix = next((name.removesuffix(_EMBEDDING) for name in averaged if name.endswith(end)), None)
    if prefix is None:
        raise UserError(f"{checkpoint} has no SiT; its run was trained without the regularizer EndToEnd")
    weights = {name.removeprefix(prefix): tensor for name, tensor in averaged.items() if name.startswith(prefix)}
    width, channels, _, _ = weights[_EMBEDDING].shape
    depth = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("transformer_blocks."))
    assert width % HEAD_WIDTH == 0, "EndToEnd refuses others"
    sit = build_sit(channels, model.sample_size // model.latent_spec.image_multiple, width, depth)
    sit.load_state_dict(weights)
    return sit.eval()


@torch.no_grad()
def fold_scale(model: Autoencoder) -> Any:
    """Return a diffusers AutoencoderKL with scaling_factor 1 whose latents are the model's, normalized per channel.

    Raises:
        UserError: The model is of another class, or has no `latents_mean` and `latents_std`.
    """
    spec = model.latent_spec
    if not isinstance(model.net, AutoencoderKL):
        kind = type(model.net).__name__
        raise UserError(f"a pipeline needs an AutoencoderKL, got {kind}; choose KLAutoencoder as model")
    net: Any = model.net
    if spec.latents_mean is None or spec.latents_std is None:
        raise UserError("the model has no latents_mean and latents_std; train it with the regularizer EndToEnd")
    convolutions = {"use_quant_conv": True, "use_post_quant_conv": True}  # SD3's and FLUX's classes have none
    no_scale = {"scaling_factor": 1.0, "shift_factor": None, "latents_mean": None, "latents_std": None}
    folded: Any = AutoencoderKL.from_config({**net.config, **convolutions, **no_scale})
    for convolution in (folded.quant_conv, folded.post_quant_conv):
        torch.nn.init.dirac_(convolution.weight)
        torch.nn.init.zeros_(convolution.bias)
    folded.load_state_dict(folded.state_dict() | net.state_dict())
    mean, std = (torch.tensor(vector) for vector in (spec.latents_mean, spec.latents_std))
    channels = spec.channels
    # The posterior's mean becomes (mean - m) / s, its log-variance log-variance - 2 log s; the decoder takes z s + m.
    folded.quant_conv.weight[:channels] /= std.view(-1, 1, 1, 1)
    folded.quant_conv.bias[:channels].sub_(mean).div_(std)
    folded.quant_conv.bias[channels:] -= 2 * std.log()
    folded.post_quant_conv.bias += folded.post_quant_conv.weight[:, :, 0, 0] @ mean
    folded.post_quant_conv.weight *= std.view(1, -1, 1, 1)
    return folded.eval()
