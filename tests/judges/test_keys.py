"""A server that echoes the key, wherever it can: the key ends in no error, reason, cache, file or log."""

import logging
import sqlite3
import traceback
from types import SimpleNamespace

import pytest

import persona_lens as pl
from persona_lens.errors import ApiError, InvalidArgumentError, PersonaLensError, TraitFormatError
from persona_lens.judges.claude import ClaudeJudge
from persona_lens.judges.openai_compatible import OpenAIJudge
from persona_lens.traits.keys import hide_key, quote
from tests.anthropic_server import DROP, Answer, message, serve
from tests.small_trait import tiny_trait

KEY = "sk-test-91c7d20b5e8f4a6630fd"
PIECES = [KEY[at : at + 12] for at in range(len(KEY) - 11)]
HEADERS = {"x-echo": KEY, "request-id": KEY, "x-request-id": KEY, "set-cookie": f"key={KEY}"}


def fault(text, kind="invalid_request_error"):
    return {"type": "error", "error": {"type": kind, "message": text}}


ECHOES = {
    "error": Answer(400, fault(f"{'x' * 60} {KEY}")),
    "error's type": Answer(400, fault("no", kind=KEY)),
    "error cut short": Answer(400, fault(f"bad key {KEY[:20]}")),
    "error of the server": Answer(500, f"bad {KEY}".encode(), {"content-type": "text/plain"}),
    "refusal of the key": Answer(401, fault(f"bad {KEY}", kind="authentication_error")),
    "forbidden": Answer(403, fault(f"bad {KEY}", kind="permission_error")),
    "body that is no JSON": Answer(200, f'{{"id": "{KEY}'.encode()),
    "lists in lists": Answer(200, b"[" * 100_000 + KEY.encode()),
    "answer": Answer(200, message(f"I saw {KEY}.")),
    "answer cut where the key begins": Answer(200, message("x" * 70 + KEY)),
    "reason to stop": Answer(200, message("80", stop_reason=KEY)),
    "content": Answer(200, {"content": KEY, "choices": KEY, "error": KEY}),
    "content of the wrong type": Answer(200, {"content": [KEY, {"type": "text", "text": [KEY]}]}),
    "a list": Answer(200, [KEY]),
    "a text": Answer(200, f'"{KEY}"'.encode()),
    "a chat's answer": Answer(200, {"choices": [{"message": {"content": f"x{KEY}"}, "finish_reason": KEY}]}),
    "a chat's token": Answer(
        200, {"choices": [{"logprobs": {"content": [{"top_logprobs": [{"token": KEY, "logprob": -0.1}]}]}}]}
    ),
    "a dropped connection": DROP,
}


@pytest.fixture
def server(monkeypatch):
    with serve() as state:
        for variable in ("ANTHROPIC_API_KEY", "OPENAI_API_KEY"):
            monkeypatch.setenv(variable, KEY)
        monkeypatch.setenv("ANTHROPIC_BASE_URL", state.url)
        yield state


def texts_in(value, seen):
    """All texts that hang on a value: of exceptions also what was being handled when they were raised."""
    if id(value) in seen or len(seen) > 20_000:
        return
    seen[id(value)] = value
    if isinstance(value, str | bytes):
        yield value if isinstance(value, str) else value.decode("latin-1")
    elif isinstance(value, dict):
        for one in (*value.keys(), *value.values()):
            yield from texts_in(one, seen)
    elif isinstance(value, list | tuple | set):
        for one in value:
            yield from texts_in(one, seen)
    elif not isinstance(value, type | logging.Logger) and not callable(value):
        yield repr(value)
        yield from texts_in(getattr(value, "__dict__", None) or {}, seen)
        if isinstance(value, BaseException):
            yield "".join(traceback.format_exception(value))
            yield from texts_in((value.args, value.__cause__, value.__context__), seen)
        if type(value).__name__ == "Headers":
            yield from texts_in(value.raw, seen)


def find_key(*values):
    found = [text for text in texts_in(values, {}) if any(piece in text for piece in PIECES)]
    return [text[:300] for text in found]


def claude_score(server, tmp_path):
    return cached(ClaudeJudge(tiny_trait(), max_retries=1), tmp_path)


def claude_submit(server, tmp_path):
    return ClaudeJudge(tiny_trait(), max_retries=0).submit_batch(["Q?"], ["R"], tmp_path / "record.json")


def claude_collect(server, tmp_path):
    judge, answer = ClaudeJudge(tiny_trait(), max_retries=0), server.answer
    if judge.submit_batch(["Q?"], ["R"], tmp_path / "record.json"):
        server.describe_batch = lambda batch_id: answer({})
    return judge.collect_batch(tmp_path / "record.json", poll_seconds=0.01, timeout_seconds=0.02)


def claude_results(server, tmp_path):
    found = server.answer({})
    body = {"id": KEY} if found is DROP or isinstance(found.body, bytes) else found.body
    server.batch_result = lambda request: {"type": "succeeded", "message": body} if "content" in body else body
    judge = ClaudeJudge(tiny_trait(), max_retries=0)
    return judge.score_batch(["Q?"], ["R"], tmp_path / "record.json", poll_seconds=0.01, timeout_seconds=1.0)


def author(server, tmp_path):
    return pl.traits.author_trait("loud", "Shouts all day long.", max_attempts=2)


def openai_score(server, tmp_path):
    return cached(OpenAIJudge(tiny_trait(), "some-model", f"{server.url}/v1", max_retries=1), tmp_path)


def cached(judge, tmp_path):
    found = pl.judges.CachedJudge(judge, pl.judges.ScoreCache(tmp_path / "scores.sqlite")).score(["Q?"], ["R"])
    return (found, repr(judge), judge.identity, judge.name)


CALLS = [claude_score, claude_submit, claude_collect, claude_results, author, openai_score]


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
@pytest.mark.parametrize("echo", ECHOES.values(), ids=ECHOES.keys())
def test_the_key_that_a_server_echoes_is_kept_nowhere(server, caplog, tmp_path, call, echo):
    caplog.set_level(logging.DEBUG)
    if isinstance(echo, Answer):
        echo = Answer(echo.status, echo.body, HEADERS | {"retry-after": "0.001"} | echo.headers)
    server.answer = lambda body: echo
    if call is claude_submit:
        server.describe_batch = lambda batch_id: echo
    outcome = SimpleNamespace(found=None, error=None)
    try:
        outcome.found = call(server, tmp_path)
    except (PersonaLensError, TimeoutError) as error:  # any other fails the test
        outcome.error = error
    assert server.requests, "the server was asked"
    assert KEY in str(server.requests[0][2]), "with the key"
    assert caplog.records, "the clients' own logs are seen here"
    assert find_key(outcome.error, repr(outcome.found), caplog.text) == []
    assert find_key(*(vars(record) for record in caplog.records)) == []
    kept = [path.read_bytes() for path in tmp_path.iterdir()]
    assert find_key(kept) == []


def test_a_key_in_a_cache_would_be_seen(tmp_path):
    """The search above finds what is there: in an SQLite file, in an exception's context, in a client's error."""
    with sqlite3.connect(tmp_path / "scores.sqlite") as connection:
        connection.execute("CREATE TABLE t (x TEXT)")
        connection.execute("INSERT INTO t VALUES (?)", (f"I saw {KEY}",))
    assert find_key((tmp_path / "scores.sqlite").read_bytes())
    inner, outer = ValueError(f"no {KEY[:14]}"), RuntimeError("clean")
    outer.__context__ = inner
    assert find_key(outer)


def test_the_errors_of_the_api_are_ours_and_carry_no_other(server, tmp_path):
    for status, kind in ((400, ApiError), (429, ApiError), (401, InvalidArgumentError), (403, InvalidArgumentError)):
        failure = Answer(status, fault("no"), {"retry-after": "0.001"})
        server.answer = lambda body, failure=failure: failure
        server.describe_batch = server.answer
        for call in (author, claude_submit):
            with pytest.raises(kind, match=str(status)) as raised:
                call(server, tmp_path)
            assert raised.value.__cause__ is None
            assert raised.value.__context__ is None


def test_an_answer_that_echoes_the_key_is_told_without_it(server):
    server.answer = lambda body: f"I saw {KEY}, whole."
    with pytest.raises(TraitFormatError) as raised:
        pl.traits.author_trait("loud", "Shouts all day long.", max_attempts=1)
    assert "I saw [key], whole." in "".join(raised.value.__notes__)


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (KEY, "[key]"),
        (f"a {KEY} b {KEY}", "a [key] b [key]"),
        (f"{KEY}{KEY}", "[key][key]"),
        (f"cut {KEY[:15]}", "cut [key]"),
        (f"cut {KEY[-12:]}!", "cut [key]!"),
        (f"short {KEY[:11]}", f"short {KEY[:11]}"),
        ("nothing", "nothing"),
        ("", ""),
    ],
)
def test_the_key_and_its_pieces_are_taken_out(said, shown):
    assert hide_key(said, KEY) == shown


def test_a_short_key_is_taken_out_whole_and_none_changes_nothing():
    assert hide_key("no abc here, ab", "abc") == "no [key] here, ab"
    assert hide_key("abc", "") == "abc"


def test_no_cut_leaves_half_a_key():
    for length in (0, 60, 79, 800 - len(KEY) // 2, 8000 - len(KEY) // 2):
        shown = quote("x" * length + KEY, KEY)
        assert not any(piece in shown for piece in PIECES)
