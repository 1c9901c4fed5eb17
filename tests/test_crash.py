"""The short form of `tests/crash_trials.py`, which kills every script twenty times."""

from __future__ import annotations

import random

import pytest
from crash_trials import scripts, small_parts, try_script


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    small_parts(folder)
    return folder


@pytest.mark.slow
def test_killed_at_random_moments_a_script_ends_in_the_same_files(parts, tmp_path):
    """The one of most files: two models a panel, three panels. WIC and MORLHF have such tests of their own."""
    script = scripts(parts, tmp_path / "output")["separate models"]()
    outcome = try_script("separate models", script, kills=2, rng=random.Random(0))
    assert outcome.kills == 2 and outcome.files > 10 and not outcome.differing
