"""Folders of other models are refused by what they hold."""

from __future__ import annotations

import json
from pathlib import Path

import diffusers
import pytest
from diffusers.models import autoencoders

import ldm_ae
from ldm_ae.core.errors import UserError
from ldm_ae.models import AUTOENCODERS, load_autoencoder
from ldm_ae.models.loading.other_classes import kind_of_class


def folder_of(class_name: str, folder: Path) -> Path:
    (folder / "config.json").write_text(json.dumps({"_class_name": class_name}))
    return folder


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("AutoencoderOobleck", "an AutoencoderOobleck, an autoencoder of audio; ldm_ae opens autoencoders of images: "),
        ("MMAudioVocoder", "a MMAudioVocoder, a vocoder"),
        ("RFD4ProteinaAutoencoder", "an autoencoder of molecules"),
        ("ConsistencyDecoderVAE", "a diffusion model that decodes latents"),
        ("AutoencoderKLAllegro", "encodes clips of 24 frames but not single images"),
        ("AutoencoderKLMiniMaxH3", "decoder needs several frames"),
        ("UNet2DConditionModel", "a diffusion model .UNet. without its autoencoder"),
        ("WanTransformer3DModel", "a diffusion transformer without its autoencoder"),
        ("FluxControlNetModel", "a ControlNet"),
        ("NewVideoAudioModel", "a model of audio"),
        ("Unheard", "an? Unheard; expected one of AsymmetricAutoencoderKL, "),
    ],
)
def test_other_models_are_refused_by_what_they_are(name: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words) as error:
        load_autoencoder(folder_of(name, tmp_path))
    assert "AutoencoderKLWan" in str(error.value)
    assert "\n" not in str(error.value)


def test_every_autoencoder_of_diffusers_opens_or_is_refused_by_what_it_is() -> None:
    """A class that a new version adds needs a decision: a row of an adapter, or of the table of refusals."""
    names = [name for name, value in vars(autoencoders).items() if isinstance(value, type)]
    assert {"AutoencoderKL", "AutoencoderKLWan", "AutoencoderOobleck"} <= {*names}
    for name in names:
        assert (name in AUTOENCODERS) != (kind_of_class(name) is not None), name


def test_network_of_audio_in_memory_is_refused_by_what_it_is() -> None:
    vocoder = diffusers.AutoencoderOobleck(encoder_hidden_size=4, downsampling_ratios=[2], channel_multiples=[1],
                                           decoder_channels=4, decoder_input_channels=4)  # fmt: skip
    with pytest.raises(UserError, match="cannot wrap an AutoencoderOobleck, an autoencoder of audio"):
        ldm_ae.wrap(vocoder)
