"""Hypothesis without clocks: a busy machine must not fail a test. Without the native core, its tests are left out."""

from __future__ import annotations

import importlib.util

from hypothesis import HealthCheck, settings

settings.register_profile("no_clock", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("no_clock")

collect_ignore_glob = [] if importlib.util.find_spec("socle_native") else ["test_native_*.py"]
