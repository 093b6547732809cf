"""The metrics, one file each; a class registers by lying here. `interface.py` says what a metric is."""

from ldm_ae.core.registry import Registry
from ldm_ae.evaluation.metrics.interface import Metric

METRICS: Registry[Metric] = Registry("ldm_ae.evaluation.metrics", Metric, "metric", key="name")  # type: ignore[type-abstract]
"""The classes of metrics by name, ours and those of plugins."""
