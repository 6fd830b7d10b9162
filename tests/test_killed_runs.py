"""Killed anywhere, the next run writes the bytes of an uninterrupted one."""

import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import pytest

from tests.anthropic_server import message, serve
from tests.experiments.scripts import FORKED
from tests.killed_work import WORKS, read_results, work


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
def test_killed_three_times_a_work_comes_to_the_same_bytes(name, roomy_folder, tmp_path, env):
    check_survival(name, roomy_folder, tmp_path, env, n_kills=3)


def check_survival(name, model, folder, env, n_kills):
    """Kill a work at random moments, go on each time, and compare what it comes to with an uninterrupted run."""
    begun = time.monotonic()
    whole = start(name, model, folder / "whole", env)
    whole.join(1200)
    took = time.monotonic() - begun
    assert whole.exitcode == 0, (folder / "whole" / "log").read_text()
    expected = read_results(name, folder / "whole")
    assert expected
    rng, kills = random.Random(name), 0
    while kills < n_kills:
        process = start(name, model, folder / "killed", env)
        process.join(took * rng.random())
        if process.exitcode is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.join(60)
        assert process.exitcode in (0, -signal.SIGKILL), (folder / "killed" / "log").read_text()
        if process.exitcode == 0:  # it came to its end between two kills: the next one begins anew
            assert read_results(name, folder / "killed") == expected
            (folder / "killed").rename(folder / f"ended {len(list(folder.iterdir()))}")
    last = start(name, model, folder / "killed", env)
    last.join(1200)
    assert last.exitcode == 0, (folder / "killed" / "log").read_text()
    assert read_results(name, folder / "killed") == expected


if __name__ == "__main__":  # with the model's name: `python -m tests.test_killed_runs smollm2-135m-instruct`
    for each in WORKS.keys() - {"judge_in_batches"}:  # which asks an endpoint, not the model
        with tempfile.TemporaryDirectory() as place:
            check_survival(each, sys.argv[1], Path(place), {"HF_HUB_OFFLINE": "1"}, n_kills=2)
            print(f"{each}: killed twice, the same bytes", flush=True)
