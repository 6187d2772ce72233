"""Hypothesis profiles: HYPOTHESIS_PROFILE is dev (fast), ci (the same draws each time), nightly."""

import os

import pytest
from hypothesis import HealthCheck, settings

import mamlnp as ml

# How fast a machine is must never decide whether a test passes.
settings.register_profile(
    "dev", max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile(
    "ci", settings.get_profile("dev"), max_examples=50, derandomize=True, print_blob=True
)
settings.register_profile(
    "nightly", settings.get_profile("dev"), max_examples=2000, print_blob=True
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if "CI" in os.environ else "dev"))


@pytest.fixture(autouse=True, scope="session")
def every_plan_is_checked():
    """Each pass by itself, and each plan, of all that the tests compile."""
    with ml.debug_compile():
        yield
