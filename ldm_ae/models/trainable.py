"""Selection of a model's trainable parameters by name pattern."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase

from ldm_ae.core.errors import UserError
from ldm_ae.models.interface import Autoencoder
from ldm_ae.models.scaling import remember_scaled_encoder


def set_trainable(model: Autoencoder, patterns: Sequence[str]) -> int:
    """Train exactly the parameters whose diffusers names match a pattern, and return the number of their elements.

    Those that the class keeps frozen (`Autoencoder.frozen_names`) are never trained, also not by `*`.

    Where the encoder is trained, its configuration records the encoder that its scale was measured for.

    Args:
        model: The model; the parameter names are those of its `net`, such as `decoder.conv_in.weight`.
        patterns: Shell patterns: `*` for all, `decoder.*` and `post_quant_conv.*` for the decoder alone.

    Raises:
        UserError: A pattern matches no parameter that can be trained.
    """
    parameters = dict(model.net.named_parameters())
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in parameters):
            parts = sorted({name.split(".")[0] for name in parameters})
            whole = next((f"{name}.*" for name in (pattern.rstrip(".*"), *get_close_matches(pattern, parts, n=1))
                          if any(key.startswith(f"{name}.") for key in parameters)), None)  # fmt: skip
            meant = "" if whole is None else f"; did you mean '{whole}'?"
            raise UserError(
                f"trainable: '{pattern}' matches no parameter; a pattern must match whole names, and the model's parts "
                f"are {', '.join(f'{part}.*' for part in parts)}{meant}"
            )
        if all(name.startswith(model.frozen_names) for name in parameters if fnmatchcase(name, pattern)):
            frozen = " and ".join(f"{prefix}*" for prefix in model.frozen_names)
            raise UserError(
                f"trainable: '{pattern}' matches only parameters that are never trained: {type(model.net).__name__} "
                f"keeps {frozen} frozen; remove it"
            )
    for name, parameter in parameters.items():
        matches = any(fnmatchcase(name, pattern) for pattern in patterns)
        parameter.requires_grad_(matches and not name.startswith(model.frozen_names))
    if any(parameter.requires_grad for parameter in model.encoder_parameters().values()):
        remember_scaled_encoder(model)
    return sum(parameter.numel() for parameter in parameters.values() if parameter.requires_grad)
