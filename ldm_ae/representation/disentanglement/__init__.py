"""Scores of disentanglement: do single latents stand for single known factors of the images?

Every score is a function of codes (N, D), such as the means of the posteriors, and factors (N, F) of the same images:
integers that number the values of each factor. The images should cover the combinations of the factors evenly, because
images "with the same factor" are taken from among them.

```python
import numpy as np

from ldm_ae.representation.disentanglement import mutual_information_gap

factors = np.stack(np.meshgrid(range(3), range(4), indexing="ij"), axis=-1).reshape(-1, 2)
print(mutual_information_gap(factors.astype(float), factors))  # 1.0: each latent is one factor
```
"""

from ldm_ae.representation.disentanglement.beta_vae import beta_vae_metric
from ldm_ae.representation.disentanglement.dci import DCI, dci
from ldm_ae.representation.disentanglement.factor_vae import factor_vae_metric
from ldm_ae.representation.disentanglement.mig import mutual_information_gap
from ldm_ae.representation.disentanglement.modularity import modularity
from ldm_ae.representation.disentanglement.sap import sap
from ldm_ae.representation.disentanglement.scores import SCORES, all_scores

__all__ = [
    "DCI",
    "SCORES",
    "all_scores",
    "beta_vae_metric",
    "dci",
    "factor_vae_metric",
    "modularity",
    "mutual_information_gap",
    "sap",
]
