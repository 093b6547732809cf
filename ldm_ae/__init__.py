"""The first stage of latent diffusion: train, measure and use image autoencoders.

```python
import ldm_ae

model = ldm_ae.load()  # the model that ships with ldm_ae; or ldm_ae.load("runs/mine")
latents = model.encode_images(["photo.jpg"], size=256)
images = model.decode_to_pil(latents)
```

The import is cheap: functions and packages, such as `ldm_ae.losses`, are imported when they are used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ldm_ae.version import __version__

if TYPE_CHECKING:
    from ldm_ae import comparison as comparison
    from ldm_ae import data as data
    from ldm_ae import discriminators as discriminators
    from ldm_ae import evaluation as evaluation
    from ldm_ae import exploration as exploration
    from ldm_ae import features as features
    from ldm_ae import interop as interop
    from ldm_ae import latents as latents
    from ldm_ae import losses as losses
    from ldm_ae import models as models
    from ldm_ae import outliers as outliers
    from ldm_ae import priors as priors
    from ldm_ae import quantizers as quantizers
    from ldm_ae import regularizers as regularizers
    from ldm_ae import training as training
    from ldm_ae.api.comparing import compare
    from ldm_ae.api.exploring import explore
    from ldm_ae.api.finding import find_outliers
    from ldm_ae.api.loading import load, load_image, wrap
    from ldm_ae.api.scoring import Report, evaluate, metrics

__all__ = [
    "Report",
    "__version__",
    "compare",
    "evaluate",
    "explore",
    "find_outliers",
    "load",
    "load_image",
    "metrics",
    "wrap",
]

_MODULES = {
    "load": "loading", "load_image": "loading", "wrap": "loading",
    "compare": "comparing",
    "explore": "exploring",
    "find_outliers": "finding",
    "Report": "scoring", "evaluate": "scoring", "metrics": "scoring",
}  # fmt: skip
"""Modules of `ldm_ae.api` by the names that they define."""
_PACKAGES = frozenset({
    "comparison", "data", "discriminators", "evaluation", "exploration", "features", "interop", "latents", "losses",
    "models", "outliers", "priors", "quantizers", "regularizers", "training",
})  # fmt: skip

if not TYPE_CHECKING:  # a type checker needs only the imports above

    def __getattr__(name: str) -> Any:
        if name in _PACKAGES:
            return importlib.import_module(f"{__name__}.{name}")
        if name in _MODULES:
            return globals().setdefault(
                name, getattr(importlib.import_module(f"{__name__}.api.{_MODULES[name]}"), name)
            )
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*__all__, *_PACKAGES, *(name for name in globals() if name.startswith("__"))})
