"""The diffusion score of an autoencoder: how well a small network learns its latents under a fixed budget.

    FOLDER/MODEL/                      the first 16 digits of the model's hash
        latents-IMAGES/                stores of the images' latents, train and held_out, for any budget
        PROTOCOL/                      the first 16 digits of the protocol's hash
            score.json                 the finished score, which is read and not computed again
            samples/00000.png          all samples
            network/                   the averaged network, as DiTTransformer2DModel
            metrics.jsonl              the training loss
            checkpoints/               removed when the score is finished

Each part is complete or absent, and a part that is there is not computed again. `docs/QUALITY.md` has the protocol.
"""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn

from ldm_ae.core.devices import pick_device
from ldm_ae.core.environment import git_commit, package_versions
from ldm_ae.core.errors import Stopped, UserError, reason
from ldm_ae.core.precision import inference_numerics, machine_name
from ldm_ae.core.seeding import derive_seed
from ldm_ae.data import EvaluationLoader
from ldm_ae.evaluation.metrics.features import EfficientNetLite0Features, FeatureNetwork, InceptionFeatures
from ldm_ae.evaluation.metrics.frechet import RELIABLE_IMAGES, FeatureStatistics, frechet_distance
from ldm_ae.evaluation.metrics.interface import CannotScoreError, ScoreInfo
from ldm_ae.images.in_memory import image_levels
from ldm_ae.images.pixels import RGB
from ldm_ae.images.uint8 import from_levels, to_uint8
from ldm_ae.io.files import clear_leftovers, make_folder, read_json, write_json, writing
from ldm_ae.io.locks import only_writer
from ldm_ae.latents.store.provenance import inference_copy
from ldm_ae.models import Autoencoder, NotFiniteError, hash_json, model_hash, require_finite
from ldm_ae.models.wrappers.tiling import blending_of
from ldm_ae.training.checkpoints.checkpoint import DivergedError
from ldm_ae.training.diffusion.networks import flow_losses
from ldm_ae.training.diffusion.score_latents import ScoreLatents, ScoreTask, encode
from ldm_ae.training.diffusion.score_network import open_network, patch_size_of, sample_latents
from ldm_ae.training.diffusion.score_protocol import DiffusionImages, DiffusionScoreConfig, describe
from ldm_ae.training.diffusion.trainer import DiffusionTrainer

Progress = Callable[[str, int, int], None]
"""Receives a stage (encoding, training, sampling), the number of its units done, and their total."""
SCORE, SAMPLES, NETWORK = "score.json", "samples", ScoreTask.result
SHOWN_SAMPLES = 64
"""Maximum number of samples in `DiffusionScore.samples`."""
_log = logging.getLogger("ldm_ae")


@dataclass(frozen=True, kw_only=True)
class DiffusionScore:
    """The result of `diffusion_score`."""

    scores: dict[str, float]
    """`flow_loss`, the mean over the noise levels; `flow_loss_LEVEL`; `sample_frechet_efficientnet_lite0`, and
    `sample_fid` where the weights of FID's Inception are on this machine."""
    infos: dict[str, ScoreInfo]
    """Display and explanation of each score, by its key."""
    compared_images: int
    """The smaller of the numbers of samples and of held-out images, for `ScoreInfo.caution`."""
    flow_losses: dict[float, float]
    """Loss on held-out images by noise level."""
    samples: Tensor
    """(N, 3, H, W) uint8, the first `SHOWN_SAMPLES`; sample i starts from the same noise for all models whose latents
    have the same shape."""
    folder: Path
    """Folder with all files of the score; samples/ has every sample as PNG."""
    protocol: dict[str, Any]
    """JSON values: the budget and the images, which are equal for all models; `model` has what depends on the model."""


def diffusion_score(
    model: Autoencoder,
    folder: str | Path,
    *,
    images: DiffusionImages,
    config: DiffusionScoreConfig,
    features: Sequence[FeatureNetwork] | None = None,
    device: str | torch.device = "auto",
    progress: Progress | None = None,
) -> DiffusionScore:
    """Train a small diffusion network on a model's latents, and score it and its samples.

    After any interruption the same call resumes; if the score is finished, it is read. Every model and every change of
    the protocol has its own folder inside `folder`.

    Args:
        model: The model, in float32; a copy of it runs.
        folder: Folder of the results of all models.
        images: The images, the same for every model; `split_images` makes them.
        config: The budget, the same for every model.
        features: Networks of the samples' Fréchet distances; None for EfficientNet-Lite0, and Inception where its
            weights are on this machine. They do not change the rest of the score.
        device: Device to run on; `auto` picks an accelerator if there is one.
        progress: Called after each unit of work; the terminal shows nothing in any case.

    Raises:
        CannotScoreError: The model cannot be scored: its latents, its decoded samples or the network's weights are not
            finite, its latents are constant, or its images have another size. Other models still can be.
        UserError: Another process computes this score, the images cannot be read, or the model is not in float32.
        Stopped: A signal ended the training; it is saved.
    """
    place = pick_device(device) if isinstance(device, str) else device
    _require_fit(model, images)
    config = replace(
        config,
        precision=inference_numerics(config.precision, place).precision,
        model_precision=inference_numerics(config.model_precision, place).precision,
    )
    networks = default_features() if features is None else features
    computation = _Computation(model, Path(folder), images, config, place, progress or _no_progress)
    return computation.finished(networks) or computation.compute(networks)


def default_features() -> list[FeatureNetwork]:
    """Return EfficientNet-Lite0, and Inception where PyTorch's cache of downloads has its weights."""
    return [EfficientNetLite0Features(), *([InceptionFeatures()] if InceptionFeatures.at_hand() else [])]


def sample_score_name(features: FeatureNetwork) -> str:
    """Return the key of the samples' Fréchet distance over a network."""
    return "sample_fid" if isinstance(features, InceptionFeatures) else f"sample_frechet_{features.name}"


def score_infos(scores: Mapping[str, float]) -> dict[str, ScoreInfo]:
    """Return display and explanation of each score of a `DiffusionScore`, by its key."""
    return {key: _info(key) for key in scores}


def _info(key: str) -> ScoreInfo:
    if key == "sample_fid":
        return ScoreInfo(
            label="FID of samples", direction="lower", group="diffusion", reliable_images=RELIABLE_IMAGES, decimals=1,
            explanation="Fréchet distance over Inception features between samples of a small diffusion network, "
            "trained on the latents under a fixed budget, and held-out images.",
        )  # fmt: skip
    if key.startswith("sample_frechet_"):
        return ScoreInfo(
            label=f"Fréchet distance of samples, {key.removeprefix('sample_frechet_')}", direction="lower",
            group="diffusion", reliable_images=RELIABLE_IMAGES, decimals=1,
            explanation="Distance between samples of a small diffusion network, trained on the latents under a fixed "
            "budget, and held-out images. Computed like FID over another network; not comparable with FID.",
        )  # fmt: skip
    level = key.removeprefix("flow_loss").removeprefix("_")
    return ScoreInfo(
        label=f"Flow loss at noise level {level}" if level else "Flow loss", direction="lower", group="diffusion",
        explanation="Mean squared error of a small diffusion network on latents of held-out images, normalized per "
        "channel; 2 before training. Latents that hold less of an image are easier to predict, so prefer the distance "
        "of samples.",
    )  # fmt: skip


def _require_fit(model: Autoencoder, images: DiffusionImages) -> None:
    """Raise CannotScoreError unless the model takes these images."""
    if model.pixel_spec != RGB:
        raise CannotScoreError("a diffusion score needs a model of RGB images")
    size, spec = images.size, model.latent_spec
    try:
        spec.latent_size(size, size)
    except UserError as error:
        raise CannotScoreError(str(error)) from error
    if size % spec.image_multiple:
        raise CannotScoreError(f"{size} pixels are not divisible by {spec.image_multiple}, as a diffusion model needs")


def _no_progress(stage: str, done: int, total: int) -> None:
    """Ignore the progress."""
    del stage, done, total


class _Computation:
    """The score of one model, from its first part that is not finished."""

    def __init__(
        self, model: Autoencoder, folder: Path, images: DiffusionImages, config: DiffusionScoreConfig,
        device: torch.device, progress: Progress,
    ):  # fmt: skip
        self._model, self._images, self._config, self._device = model, images, config, device
        self._progress = progress
        self._protocol = describe(images, config)
        self._identity = {"model": model_hash(model), "protocol": hash_json(self._protocol)}
        tiles = blending_of(model)
        mine = self._identity["model"] if tiles == (0, 0) else hash_json([self._identity["model"], *tiles])
        encoded = hash_json([self._protocol["images"], config.model_precision, config.seed])
        self._place = folder / mine[:16] / self._identity["protocol"][:16]
        self._latents_place = folder / mine[:16] / f"latents-{encoded[:16]}"

    # ------------------------------------------------------------------------------------------------- the whole score

    def finished(self, networks: Sequence[FeatureNetwork]) -> DiffusionScore | None:
        """Return the score if it is finished, with the distances over these networks; else None."""
        saved = self._saved()
        names = [sample_score_name(network) for network in networks]
        if saved is None or any(name not in saved["scores"] for name in names) or self._missing():
            return None
        return self._result(saved, names)

    def compute(self, networks: Sequence[FeatureNetwork]) -> DiffusionScore:
        """Compute the parts that are not finished."""
        make_folder(self._place)
        with only_writer(self._place):
            for folder in (self._place, self._place / SAMPLES, self._place / "checkpoints"):
                clear_leftovers(folder)
            saved = self._saved()
            if saved is None or self._missing():
                encode_progress = partial(self._progress, "encoding")
                encode(
                    self._model, self._latents_place, images=self._images, config=self._config, device=self._device,
                    progress=encode_progress,
                )  # fmt: skip
                latents = ScoreLatents(self._latents_place, self._model.latent_spec, self._config)
                task = ScoreTask(latents, self._config, image_size=self._images.size, identity=self._identity)
                if not (self._place / NETWORK).is_dir():
                    self._train(task)
                network = open_network(self._place / NETWORK, self._device)
                self._sample(network, latents)
                if saved is None:
                    saved = self._scored(network, latents, task)
            self._add_distances(saved, networks)
            write_json(self._place / SCORE, saved)
            shutil.rmtree(self._place / "checkpoints", ignore_errors=True)
        return self._result(saved, [sample_score_name(network) for network in networks])

    def _saved(self) -> dict[str, Any] | None:
        """Return the content of score.json; None where there is none."""
        path = self._place / SCORE
        if not path.is_file():
            return None
        try:
            found = read_json(path)
            if found["identity"] != self._identity or not all(map(math.isfinite, found["scores"].values())):
                raise ValueError("it does not belong to its folder")
            float(found["scores"]["flow_loss"])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path} is damaged ({reason(error)}); remove it to compute the score again") from error
        return dict(found)

    def _result(self, saved: Mapping[str, Any], names: Sequence[str]) -> DiffusionScore:
        scores: dict[str, float] = {
            key: value for key, value in saved["scores"].items() if key.startswith("flow_loss") or key in names
        }
        levels = self._config.noise_levels
        paths = self._sample_paths()[:SHOWN_SAMPLES]
        return DiffusionScore(
            scores=scores, infos=score_infos(scores),
            compared_images=min(self._config.samples, len(self._images.held_out)),
            flow_losses={level: scores[f"flow_loss_{level}"] for level in levels},
            samples=torch.stack([_read_png(path) for path in paths]), folder=self._place, protocol=saved["protocol"],
        )  # fmt: skip

    # -------------------------------------------------------------------------------------------------------- its parts

    def _train(self, task: ScoreTask) -> None:
        config = self._config.training()
        accelerator = Accelerator(
            cpu=self._device.type == "cpu", mixed_precision="bf16" if config.precision == "bf16" else "no"
        )
        trainer = DiffusionTrainer(
            self._place, accelerator, config, task,
            report=lambda step: self._progress("training", step, config.steps),
        )  # fmt: skip
        trainer.resume()
        try:
            trainer.fit()
        except Stopped:
            _log.warning("the diffusion score is saved at step %d; rerun the same command to resume", trainer.step)
            raise
        except DivergedError as error:
            raise CannotScoreError(f"the training of the diffusion network diverged: {error}") from error

    def _sample_paths(self) -> list[Path]:
        return [self._place / SAMPLES / f"{i:05d}.png" for i in range(self._config.samples)]

    def _missing(self) -> list[int]:
        """Return the numbers of the samples that are not there."""
        return [i for i, path in enumerate(self._sample_paths()) if not path.is_file()]

    @torch.no_grad()
    def _sample(self, network: nn.Module, latents: ScoreLatents) -> None:
        """Write the samples; a batch that has all its files is not computed again."""
        missing, paths, size = set(self._missing()), self._sample_paths(), self._config.model_batch_size
        if not missing:
            return
        make_folder(self._place / SAMPLES)
        precision = self._config.model_precision
        decoder = inference_copy(self._model, device=self._device, precision=precision)
        for start in range(0, len(paths), size):
            numbers = range(start, min(start + size, len(paths)))
            if missing.isdisjoint(numbers):
                continue
            seeds = torch.tensor([derive_seed("diffusion sample", self._config.seed, number) for number in numbers])
            names = [f"sample {number}" for number in numbers]
            try:
                sampled = sample_latents(network, latents.shape, seeds, self._config.sampling_steps, self._device)
                require_finite(sampled, names, "fp32", what="the latents")
                images = decoder.decode(latents.spec.unscale(sampled))
                require_finite(images, names, precision, what="the decoded image")
            except NotFiniteError as error:
                raise CannotScoreError(str(error)) from error
            for number, image in zip(numbers, to_uint8(images).cpu(), strict=True):
                with writing(paths[number]) as temporary:
                    Image.fromarray(image.permute(1, 2, 0).numpy()).save(temporary, format="PNG")
            self._progress("sampling", numbers.stop, len(paths))

    def _scored(self, network: nn.Module, latents: ScoreLatents, task: ScoreTask) -> dict[str, Any]:
        """Return the content of score.json without distances."""
        config = self._config
        losses = flow_losses(
            network, latents.held_out(self._device), config.noise_levels, seed=config.seed, channels=latents.varying
        )
        scores = {"flow_loss": fmean(losses.values())}
        scores |= {f"flow_loss_{level}": loss for level, loss in losses.items()}
        if not all(map(math.isfinite, scores.values())):
            raise CannotScoreError("the diffusion network's loss on held-out images is not finite")
        channels, height, width = latents.shape
        patch = patch_size_of(height, self._images.size)
        of_the_model = {
            "hash": self._identity["model"],
            "latents": [channels, height, width],
            "patch_size": patch,
            "tokens": (height // patch) * (width // patch),
            "constant_channels": latents.constant_channels,
            "batch_size": task.global_batch,
            "fp32_fallbacks": latents.fp32_fallbacks,
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
            "device": machine_name(self._device),
        }
        protocol = self._protocol | {
            "source": self._images.name, "model": of_the_model, "git_commit": git_commit(),
            "versions": package_versions(),
        }  # fmt: skip
        return {"identity": self._identity, "scores": scores, "protocol": protocol}

    def _add_distances(self, saved: dict[str, Any], networks: Sequence[FeatureNetwork]) -> None:
        """Add the samples' distances to the held-out images over the networks whose distance is not there yet."""
        size = self._config.model_batch_size
        for network in networks:
            name = sample_score_name(network)
            if name in saved["scores"]:
                continue
            if isinstance(network, nn.Module):
                network.to(self._device)
            loader = EvaluationLoader(
                self._images.held_out, self._images.transform, batch_size=size, workers=self._config.workers
            )
            real = _statistics(network, (batch.pixel_values for batch in loader), self._device)
            fake = _statistics(network, _pixel_values(self._sample_paths(), size), self._device)
            saved["scores"][name] = frechet_distance(real, fake)


@torch.inference_mode()
def _statistics(network: FeatureNetwork, batches: Iterator[Tensor], device: torch.device) -> FeatureStatistics:
    found = FeatureStatistics(network.dim)
    for batch in batches:
        found.update(network(batch.to(device)))
    return found


def _pixel_values(paths: Sequence[Path], size: int) -> Iterator[Tensor]:
    """Yield (B, 3, H, W) float32 in [-1, 1] from PNG files."""
    for start in range(0, len(paths), size):
        yield from_levels(torch.stack([_read_png(path) for path in paths[start : start + size]]))


def _read_png(path: Path) -> Tensor:
    """Return (3, H, W) uint8; UserError if the file is damaged."""
    try:
        with Image.open(path) as image:
            return image_levels(image)
    except (OSError, SyntaxError, ValueError) as error:  # Pillow raises SyntaxError for some damaged PNG
        raise UserError(f"{path} is damaged ({reason(error)}); remove it to compute it again") from error
