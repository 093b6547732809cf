"""One hypothesis profile: the same examples in every run, few of them, no deadline and no database on disk."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile(
    "ldm_ae",
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=40,
    # The autouse fixture that seeds torch runs once a test and not once an example; no property depends on it.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("ldm_ae")
