"""The metrics, one file each. A class in this folder is registered; `interface.py` defines a metric."""

from ldm_ae.core.registry import Registry
from ldm_ae.evaluation.metrics.interface import Metric

METRICS: Registry[Metric] = Registry("ldm_ae.evaluation.metrics", Metric, "metric", key="name")  # type: ignore[type-abstract]
"""The metric classes by name, including those of plugins."""
