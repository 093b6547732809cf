"""Messages that name the fault which the curves of a failing run show."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ldm_ae.training.gradients import ADAPTIVE_MAX

PATIENCE = 5
"""Number of consecutive log lines that must show a fault before it is named."""

Check = Callable[[Mapping[str, float]], bool]


def _discriminator_has_won(logs: Mapping[str, float]) -> bool:
    return logs.get("discriminator_accuracy", 0.0) > 0.98


def _discriminator_has_collapsed(logs: Mapping[str, float]) -> bool:
    if "discriminator_accuracy" not in logs:
        return False
    apart = abs(logs["logits_real"] - logs["logits_fake"])
    return apart < 1e-3 and abs(logs["discriminator_accuracy"] - 0.5) < 0.01


def _weight_at_clamp(logs: Mapping[str, float]) -> bool:
    return logs.get("adaptive_weight", 0.0) >= 0.99 * ADAPTIVE_MAX


def _kl_has_collapsed(logs: Mapping[str, float]) -> bool:
    return logs.get("kl_per_latent", 1.0) < 1e-3


def _codebook_has_collapsed(logs: Mapping[str, float]) -> bool:
    return logs.get("codebook_spread", 1.0) < 0.05 or logs.get("codebook_perplexity", 2.0) < 1.2


ALARMS: dict[str, tuple[Check, str]] = {
    "discriminator_won": (
        _discriminator_has_won,
        "the discriminator recognizes nearly all reconstructions, and its gradient is small: "
        "lower its learning rate or gan_weight, or start it later",
    ),
    "discriminator_collapsed": (
        _discriminator_has_collapsed,
        "the discriminator gives real and reconstructed images the same logits and does not learn: "
        "raise its learning rate or lower its regularization",
    ),
    "adaptive_weight_clamped": (
        _weight_at_clamp,
        f"the adaptive weight sits at its clamp of {ADAPTIVE_MAX:.0f}: the adversarial gradient at the last layer has "
        "vanished; the discriminator is probably saturated",
    ),
    "kl_collapsed": (
        _kl_has_collapsed,
        "the KL per latent element is below 0.001 nats: the latents carry no information; lower the kl weight",
    ),
    "codebook_collapsed": (
        _codebook_has_collapsed,
        "nearly all latents use a few codes (codebook_perplexity) and the others are unused: initialize the codes by "
        "k-means and restart dead ones (care: kmeans_iterations, restart_below), or use FSQ, which has no dead codes",
    ),
}


class Alarms:
    """Detection of faults: each is named after `PATIENCE` consecutive log lines, and again only if it returns."""

    def __init__(self) -> None:
        self._seen = dict.fromkeys(ALARMS, 0)

    def check(self, logs: Mapping[str, float]) -> dict[str, str]:
        """Return a message for each fault that this log line confirms, by name."""
        found = {}
        for name, (check, words) in ALARMS.items():
            self._seen[name] = self._seen[name] + 1 if check(logs) else 0
            if self._seen[name] == PATIENCE:
                found[name] = words
        return found
