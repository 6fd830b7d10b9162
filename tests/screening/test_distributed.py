"""Screening on a real Ray of two worker processes on this machine."""

import dataclasses
import json
import os
import signal
import sys
import threading
import time

import psutil
import pyarrow.parquet as pq
import pytest

import persona_lens as pl
from persona_lens.screening import RayWorkers
from tests.screening.test_screen import LAYERS, SETTINGS, converse, make_rows, make_vectors, read_shards, run

pytest.importorskip("ray")
# Ray's own, about its own settings.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray", "ignore::FutureWarning:ray"),
    pytest.mark.slow,  # starts a Ray cluster
]


def run_on_ray(folder, vectors, data, out, **more):
    given = {"layers": LAYERS, "settings": SETTINGS, "shard_rows": 4, "workers": RayWorkers(2, dtype="float32")} | more
    return pl.screening.screen_on_ray(folder, data, vectors, out, **given)


def kill_one_worker_after(out, n_finished, killed):
    """Kill a process that scores shards as soon as so many are finished."""
    while len(list(out.glob("shards/*.arrow"))) < n_finished:
        time.sleep(0.005)
    # Of this process' own cluster: another's may run on the same machine.
    children = psutil.Process().children(recursive=True)
    workers = [one for one in children if "ray::_Worker.compute" in " ".join(one.cmdline())]
    if workers:
        os.kill(workers[0].pid, signal.SIGKILL)
        killed.append(len(list(out.glob("shards/*.arrow"))))


@pytest.mark.usefixtures("cluster")
def test_with_a_worker_killed_in_the_middle_the_result_is_the_plain_runs(tiny_folder, tiny_model, tmp_path):
    folder = tiny_folder("llama")
    data = tmp_path / "rows.jsonl"
    rows = [json.dumps(row) for row in make_rows(240)]
    data.write_text("\n".join([*rows[:5], "{not json", *rows[5:]]))
    plain = run(tiny_model, data, tmp_path / "plain")
    killed = []
    killer = threading.Thread(target=kill_one_worker_after, args=(tmp_path / "ray", 5, killed), daemon=True)
    killer.start()
    found = run_on_ray(folder, make_vectors(tiny_model), data, tmp_path / "ray")
    killer.join(10)
    assert killed, "no worker was there to be killed"
    assert killed[0] < 61, "it was killed when all was done"
    assert found.counts == plain.counts == {"scored": 240, "not JSON": 1}
    assert read_shards(tmp_path / "ray") == read_shards(tmp_path / "plain")
    table = pq.read_table(tmp_path / "ray" / "parquet").sort_by("index").to_pylist()
    assert table == [dict(row) for row in plain.rows]
    assert not (tmp_path / "ray" / "waiting").exists()


@pytest.mark.usefixtures("cluster")
def test_a_second_call_keeps_the_shards_and_writes_the_parquet_files_again(tiny_folder, tiny_model, tmp_path):
    """The first one's, of this process alone: who does the work changes nothing of what is kept."""
    folder, rows = tiny_folder("llama"), make_rows(10)
    run(tiny_model, rows, tmp_path / "out")
    times = [path.stat().st_mtime_ns for path in sorted((tmp_path / "out" / "shards").iterdir())]
    rows[9] = converse("Another question?", "Another.")
    found = run_on_ray(folder, make_vectors(tiny_model), rows, tmp_path / "out")
    after = [path.stat().st_mtime_ns for path in sorted((tmp_path / "out" / "shards").iterdir())]
    assert after[:2] == times[:2]
    assert after[2] != times[2]
    assert found.rows[9]["response"] == "Another."
    assert len(pq.read_table(tmp_path / "out" / "parquet")) == 10


@pytest.mark.usefixtures("cluster")
def test_all_answers_of_a_conversation_come_out_as_the_plain_runs(tiny_folder, tiny_model, tmp_path):
    chat = {"messages": converse("Why?", "one")["messages"] + converse("Who?", "two")["messages"]}
    rows, settings = [*make_rows(5), chat], dataclasses.replace(SETTINGS, turn="all")
    plain = run(tiny_model, rows, tmp_path / "plain", settings=settings)
    found = run_on_ray(tiny_folder("llama"), make_vectors(tiny_model), rows, tmp_path / "ray", settings=settings)
    assert read_shards(tmp_path / "ray") == read_shards(tmp_path / "plain")
    assert len(found.rows[5]["answers"]) == 2
    assert found.n_with_further == plain.n_with_further == 0


@pytest.mark.usefixtures("cluster")
def test_a_vector_of_another_model_and_bad_numbers_are_refused_before_anything_is_written(
    tiny_folder, tiny_model, tmp_path
):
    vectors = make_vectors(tiny_model)
    with pytest.raises(pl.errors.ModelMismatchError):
        run_on_ray(tiny_folder("qwen2"), vectors, make_rows(2), tmp_path / "out")
    with pytest.raises(pl.errors.InvalidArgumentError, match="`n`"):
        RayWorkers(0)
    assert not (tmp_path / "out").exists()


def test_without_ray_the_message_says_what_to_install(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"persona-lens\[ray\]"):
        run_on_ray("any", make_vectors(tiny_model), make_rows(2), tmp_path / "out")
