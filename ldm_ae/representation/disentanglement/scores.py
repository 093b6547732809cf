"""All scores of disentanglement at once, by name."""

from __future__ import annotations

from collections.abc import Mapping

from numpy.typing import ArrayLike

from ldm_ae.representation.disentanglement.beta_vae import beta_vae_metric
from ldm_ae.representation.disentanglement.dci import dci
from ldm_ae.representation.disentanglement.factor_vae import factor_vae_metric
from ldm_ae.representation.disentanglement.mig import mutual_information_gap
from ldm_ae.representation.disentanglement.modularity import modularity
from ldm_ae.representation.disentanglement.sap import sap

SCORES: Mapping[str, str] = {
    "beta_vae": "BetaVAE metric",
    "factor_vae": "FactorVAE metric",
    "mig": "MIG",
    "dci_disentanglement": "DCI disentanglement",
    "dci_completeness": "DCI completeness",
    "dci_informativeness": "DCI informativeness",
    "sap": "SAP",
    "modularity": "Modularity",
}
"""Display names of the scores, by key. Higher is better for each."""


def all_scores(codes: ArrayLike, factors: ArrayLike, *, seed: int = 0) -> dict[str, float]:
    """Return every score of `SCORES` by key.

    Args:
        codes: (N, D).
        factors: (N, F) integers.
        seed: Seed of the random parts.

    Raises:
        UserError: The arrays are not valid, or scikit-learn is missing.
    """
    parts = dci(codes, factors, seed=seed)
    return {
        "beta_vae": beta_vae_metric(codes, factors, seed=seed),
        "factor_vae": factor_vae_metric(codes, factors, seed=seed),
        "mig": mutual_information_gap(codes, factors),
        "dci_disentanglement": parts.disentanglement,
        "dci_completeness": parts.completeness,
        "dci_informativeness": parts.informativeness,
        "sap": sap(codes, factors, seed=seed),
        "modularity": modularity(codes, factors),
    }
