"""What the model folders hold that this package does not open, by the name of their class."""

from __future__ import annotations

import re
from collections.abc import Iterable

from ldm_ae.core.errors import printable

_AUDIO = "an autoencoder of audio"
_VOCODER = "a vocoder, which makes audio from spectrograms or latents"
_KINDS = {
    "AutoencoderKLAllegro": "an autoencoder of video that encodes clips of 24 frames but not single images",
    "AutoencoderKLKVAEAudio": _AUDIO,
    "AutoencoderKLLTX2Audio": _AUDIO,
    "AutoencoderKLMiniMaxH3": "an autoencoder of video whose decoder needs several frames",
    "AutoencoderKLMiniMaxH3Audio": _AUDIO,
    "AutoencoderOobleck": _AUDIO,
    "AutoencoderSAME": "an autoencoder of music",
    "ConsistencyDecoderVAE": "a diffusion model that decodes latents of Stable Diffusion, beside the encoder of an "
    "AutoencoderKL; each of its decodings draws noise",
    "Cosmos3AVAEAudioTokenizer": _AUDIO,
    "LTX2VideoDiffusionDecoderModel": "a diffusion model that decodes latents of video, without an encoder",
    "LongCatAudioDiTVae": _AUDIO,
    "MMAudioVAE": _AUDIO,
    "MMAudioVocoder": _VOCODER,
    "MiniMaxMusic3Vocoder": _VOCODER,
    "RFD4ProteinaAutoencoder": "an autoencoder of molecules",
}
"""Classes of diffusers 0.42 that are or resemble autoencoders."""
# Patterns of other names, the most specific first.
_PATTERNS = (
    (r"ControlNet", "a ControlNet"),
    (r"Vocoder", _VOCODER),
    (r"Audio", "a model of audio"),
    (r"UNet|Unet", "a diffusion model (UNet) without its autoencoder"),
    (r"Transformer\w*Model$|^PriorTransformer$", "a diffusion transformer without its autoencoder"),
    (r"Scheduler$", "a scheduler"),
    (r"Pipeline$", "a pipeline, not one of its parts"),
)


def kind_of_class(name: str) -> str | None:
    """Return what a class of diffusers is, such as `an autoencoder of audio`, or None if its name tells nothing."""
    if name in _KINDS:
        return _KINDS[name]
    return next((kind for pattern, kind in _PATTERNS if re.search(pattern, name)), None)


def describe_class(name: str, opened: Iterable[str]) -> str:
    """Return the end of a message about a class that is not among the `opened`: `an AutoencoderOobleck, ...`."""
    article = "an" if name[:1] in ("A", "E", "I", "O") else "a"
    kind, classes = kind_of_class(name), ", ".join(opened)
    if kind is None:
        return f"{article} {printable(name)}; expected one of {classes}"
    return f"{article} {printable(name)}, {kind}; ldm_ae opens autoencoders of images: {classes}"
