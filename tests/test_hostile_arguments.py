"""Whatever a public callable is given, it is refused by the parameter's name before any model runs, or it works."""

import json
import os
import subprocess
import sys

import pytest

from tests.experiments.scripts import search_path


@pytest.mark.slow
def test_no_hostile_argument_ends_in_a_bare_error_or_never(tmp_path):
    """In a process of its own, without the tests' own type checks."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.hostile_arguments"], capture_output=True, text=True, cwd=tmp_path, timeout=900,
        env=os.environ | {"PYTHONPATH": search_path()},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert outcome["found"] == []
    assert outcome["counts"]["callables"] > 250
    assert outcome["counts"]["refused"] > 30_000
