"""Killed anywhere, the next run writes the bytes of an uninterrupted one."""

import os
import random
import signal
import time

import pytest

from tests.anthropic_server import message, serve
from tests.experiments.scripts import FORKED
from tests.killed_work import WORKS, read_results, work

N_KILLS = 10


def start(name, folder, out, env):
    out.mkdir(exist_ok=True)
    process = FORKED.Process(target=work, args=(name, folder, out, env))
    process.start()
    return process


@pytest.fixture
def env():
    """A key and an endpoint for the judge that needs them."""
    warm = FORKED.Process(target=os.getpid)  # the first one imports for all
    warm.start()
    warm.join()
    with serve() as server:
        server.polls_until_end = 4
        server.batch_result = rate
        yield {"ANTHROPIC_API_KEY": "sk-none", "ANTHROPIC_BASE_URL": server.url, "HF_HUB_OFFLINE": "1"}


def rate(request):
    """A rating that depends on what is rated."""
    score = sum(map(ord, str(request["params"]["messages"]))) % 101
    return {"type": "succeeded", "message": message(f'{{"score": {score}, "coherence": 90}}')}


@pytest.mark.slow
@pytest.mark.parametrize("name", WORKS)
def test_killed_ten_times_a_work_comes_to_the_same_bytes(name, roomy_folder, tmp_path, env):
    begun = time.monotonic()
    whole = start(name, roomy_folder, tmp_path / "whole", env)
    whole.join(300)
    took = time.monotonic() - begun
    assert whole.exitcode == 0, (tmp_path / "whole" / "log").read_text()
    expected = read_results(name, tmp_path / "whole")
    assert expected
    rng, kills = random.Random(name), 0
    while kills < N_KILLS:
        process = start(name, roomy_folder, tmp_path / "killed", env)
        process.join(took * rng.random())
        if process.exitcode is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.join(60)
        assert process.exitcode in (0, -signal.SIGKILL), (tmp_path / "killed" / "log").read_text()
        if process.exitcode == 0:  # it came to its end between two kills: the next one begins anew
            assert read_results(name, tmp_path / "killed") == expected
            (tmp_path / "killed").rename(tmp_path / f"ended {len(list(tmp_path.iterdir()))}")
    last = start(name, roomy_folder, tmp_path / "killed", env)
    last.join(300)
    assert last.exitcode == 0, (tmp_path / "killed" / "log").read_text()
    assert read_results(name, tmp_path / "killed") == expected
