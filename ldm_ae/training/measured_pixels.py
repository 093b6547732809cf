"""Limits of the channels, measured over the training images before a run begins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace

from ldm_ae.data import open_source
from ldm_ae.data.pixel_limits import QUANTILES, measure_limits
from ldm_ae.training.configuration.parsing import saved_text


def with_measured_pixels(config: Namespace, parser: ArgumentParser) -> Namespace:
    """Return the configuration with numbers in place of `model.init_args.pixels.quantiles`, or the same without them.

    The run saves the numbers, so that a resumed run and all phases have the same images.

    Raises:
        UserError: See `measure_limits`.
    """
    described = config.get("model.init_args.pixels")
    if isinstance(described, Namespace):
        described = described.as_dict()
    if not isinstance(described, Mapping) or QUANTILES not in described:
        return config
    pixels = measure_limits(open_source(config.data.train), described)
    tree: dict[str, Any] = yaml.safe_load(saved_text(config, parser))
    tree["model"]["init_args"]["pixels"] = pixels.to_json()
    return parser.parse_object(tree)
