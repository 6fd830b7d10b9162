import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

import persona_lens as pl
from persona_lens.errors import FileFormatError, InvalidArgumentError
from persona_lens.judges.cache import CachedJudge, ScoreCache

ROOT = Path(__file__).resolve().parents[2]


class CountingJudge:
    """Scores by length, and counts what it was asked."""

    name = "counting"

    def __init__(self, identity="counting 1"):
        self.identity = identity
        self.asked = []

    def score(self, questions, responses):
        self.asked += responses
        return [
            pl.judges.Judgement(None, None, "connection lost", retryable=True)
            if response == "lost"
            else pl.judges.Judgement(None, None, "refusal")
            if response == "refused"
            else pl.judges.Judgement(float(len(response)), None)
            for response in responses
        ]


@pytest.fixture
def cache(tmp_path):
    return ScoreCache(tmp_path / "folder" / "scores.sqlite")


def test_a_rerun_asks_nothing_and_answers_the_same(cache):
    judge = CountingJudge()
    questions, responses = ["a", "a", "b", "a"], ["x", "yy", "x", "x"]
    first = CachedJudge(judge, cache).score(questions, responses)
    assert [j.score for j in first] == [1.0, 2.0, 1.0, 1.0]
    assert sorted(judge.asked) == ["x", "x", "yy"]  # the first and last row are one
    again = CountingJudge()
    assert CachedJudge(again, ScoreCache(cache.path)).score(questions, responses) == first
    assert again.asked == []


def test_another_judge_question_or_response_is_asked_anew(cache):
    CachedJudge(CountingJudge(), cache).score(["q"], ["r"])
    for identity, question, response in (("counting 2", "q", "r"), ("counting 1", "Q", "r"), ("counting 1", "q", "R")):
        judge = CountingJudge(identity)
        CachedJudge(judge, cache).score([question], [response])
        assert judge.asked == [response]


def test_keys_tell_where_question_and_response_part():
    assert ScoreCache.key("j", "ab", "c") != ScoreCache.key("j", "a", "bc")


def test_a_refusal_is_kept_and_a_lost_connection_is_asked_again(cache):
    for expected in (["lost", "refused"], ["lost"]):
        judge = CountingJudge()
        found = CachedJudge(judge, cache).score(["q", "q"], ["lost", "refused"])
        assert judge.asked == expected
        assert [j.reason for j in found] == ["connection lost", "refusal"]


@pytest.mark.slow
def test_what_was_judged_before_a_kill_is_there_and_two_processes_write_at_once(tmp_path):
    """Two processes write 100 rows each, row by row; one more is killed by the kernel in the middle."""
    path = tmp_path / "scores.sqlite"
    code = (
        "import sys; from persona_lens.judges.cache import ScoreCache; from persona_lens.judges.judgement import *\n"
        "cache = ScoreCache(sys.argv[1])\n"
        "for i in range(int(sys.argv[3])):\n"
        "    cache.write({f'{sys.argv[2]}-{i}': Judgement(float(i % 100), None)})\n"
        "    print(i, flush=True)\n"
    )

    def start(name, n):
        command = [sys.executable, "-c", code, str(path), name, str(n)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})

    doomed, first, second = start("doomed", 10**6), start("a", 100), start("b", 100)
    confirmed = -1
    deadline = time.monotonic() + 120
    while confirmed < 20 and time.monotonic() < deadline:
        confirmed = int(doomed.stdout.readline())
    doomed.send_signal(signal.SIGKILL)
    doomed.communicate()
    for process in (first, second):
        process.communicate(timeout=120)
        assert process.returncode == 0
    keys = [f"{name}-{i}" for name in "ab" for i in range(100)] + [f"doomed-{i}" for i in range(confirmed + 1)]
    assert set(keys) <= ScoreCache(path).read(keys).keys()


def test_another_file_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("these are my notes, " * 100)
    with pytest.raises(FileFormatError, match="score cache"):
        ScoreCache(path)
    assert path.read_text().startswith("these are my notes")


def test_lists_of_unequal_length_are_refused(cache):
    with pytest.raises(InvalidArgumentError, match="as many"):
        CachedJudge(CountingJudge(), cache).score(["a"], [])


def test_many_rows_are_kept_and_read_back(cache):
    responses = [str(i) for i in range(1300)]
    judge = CountingJudge()
    CachedJudge(judge, cache).score(["q"] * 1300, responses)
    assert len(cache) == 1300
    found = CachedJudge(judge, cache).score(["q"] * 1300, responses)
    assert [j.score for j in found] == [float(len(r)) for r in responses]
    assert len(judge.asked) == 1300


def test_a_judgement_comes_back_whole_and_a_newer_one_replaces_it(cache):
    whole = {
        "a": pl.judges.Judgement(70.25, 90.5),
        "b": pl.judges.Judgement(10.0, None),
        "c": pl.judges.Judgement(None, None, "refusal"),
    }
    cache.write(whole)
    assert cache.read(["a", "b", "c", "d"]) == whole
    cache.write({"a": pl.judges.Judgement(71.0, 91.0)})
    assert cache.read(["a"]) == {"a": pl.judges.Judgement(71.0, 91.0)}
    assert len(cache) == 3


def test_what_was_judged_before_a_judge_failed_is_kept(cache):
    class FailingJudge(CountingJudge):
        def score(self, questions, responses):
            if self.asked:
                raise ConnectionError
            return super().score(questions, responses)

    judge = FailingJudge()
    with pytest.raises(ConnectionError):
        CachedJudge(judge, cache).score(["q"] * 200, [str(i) for i in range(200)])
    assert 0 < len(judge.asked) < 200
    assert len(cache) == len(judge.asked)


def test_a_reader_does_not_wait_for_a_writer(cache, monkeypatch):
    monkeypatch.setattr("persona_lens.judges.cache._TIMEOUT_SECONDS", 0.1)
    cache.write({"a": pl.judges.Judgement(1.0, None)})
    with closing(sqlite3.connect(cache.path)) as writer:
        writer.execute("BEGIN EXCLUSIVE")
        writer.execute("DELETE FROM judgements")
        assert cache.read(["a"]) == {"a": pl.judges.Judgement(1.0, None)}
