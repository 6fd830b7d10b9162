"""The page's server, over HTTP; tests/live/test_app_in_a_browser.py has the page itself."""

import http.client
import json
import shutil
import threading
import time
from contextlib import closing
from dataclasses import replace
from urllib.parse import urlsplit

import pytest
import torch

import persona_lens as pl
from persona_lens.errors import InvalidArgumentError, ModelMismatchError
from tests.live.app_page import (
    LAYERS,
    answer,
    answer_and_stop,
    ask_server,
    join,
    load_roomy,
    make_monitor,
    make_vectors,
    open_chat,
)
from tests.tiny import CHATML, make_tokenizer, save_tiny

pytest.importorskip("uvicorn", reason="the extra `app` is not installed")
pytest.importorskip("starlette", reason="the extra `app` is not installed")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_roomy(tmp_path_factory.mktemp("roomy"))


@pytest.fixture(scope="module")
def vectors(model):
    return make_vectors(model)


@pytest.fixture(scope="module")
def app(model, vectors):
    monitor = make_monitor(model, vectors)
    with pl.live.start_app(model, vectors, layers=LAYERS, monitor=monitor, port=0) as running:
        yield running


def test_an_answer_comes_token_by_token_as_the_library_streams_it(app, model, vectors):
    events = answer(app, open_chat(app), text="Hi", coefficients={"loud": 1.5, "calm": -1})
    both = pl.steer(vectors["loud"], layer=1, coefficient=1.5) + pl.steer(vectors["calm"], layer=2, coefficient=-1.0)
    sampling = pl.Sampling(max_new_tokens=6, temperature=0)
    asked = [{"role": "user", "content": "Hi"}]
    expected = list(pl.monitoring.stream_tokens(model, asked, vectors, intervention=both, sampling=sampling))
    tokens = [one for one in events if one["kind"] == "token"]
    assert [one["text"] for one in tokens] == [one.text for one in expected]
    found = torch.tensor([one["projections"] for one in tokens])
    torch.testing.assert_close(found, torch.stack([one.projections for one in expected]), atol=6e-4, rtol=0)
    assert [one["kind"] for one in events] == ["read", *["token"] * len(tokens), "end"]


def test_a_slider_changes_the_answer_and_the_same_sliders_give_the_same_one(app):
    plain, again, steered = (join(answer(app, open_chat(app), text="Hi", coefficients={"loud": c})) for c in (0, 0, 20))
    assert plain == again != steered


def test_before_each_answer_the_monitor_reads_the_prompt_as_watch_does(app, model, vectors):
    chat = open_chat(app)
    first = answer(app, chat, text="Hi", coefficients={"loud": 20})
    second = answer(app, chat, text="And you?")
    said = [
        {"role": "user", "content": "Hi"}, {"role": "assistant", "content": join(first)},
        {"role": "user", "content": "And you?"},
    ]  # fmt: skip
    watched = make_monitor(model, vectors).watch(model, said)
    for turn, events in enumerate((first, second)):
        for trait in LAYERS:
            assert events[0]["readings"][trait]["projection"] == pytest.approx(
                watched.of(trait)[turn].projection, abs=1e-3
            )


def test_the_export_is_a_record_of_every_message_with_what_was_added(app, tmp_path):
    chat = open_chat(app)
    events = answer(app, chat, text="Hi", system="Be kind.", coefficients={"loud": 2})
    answer(app, chat, text="Why?")
    path = tmp_path / "conversation.json"
    path.write_text(ask_server(app, "GET", f"{chat}/conversation.json")[2])
    read = pl.live.ReadConversation.load(path)
    assert read.roles == ("system", "user", "assistant", "user", "assistant")
    (variant,) = read.variants
    of = [[i for i, turn in enumerate(variant.turns) if turn == message] for message in range(5)]
    assert ["".join(variant.texts[i] for i in own) for own in of][:3] == ["Be kind.", "Hi", join(events)]
    assert [bool(variant.steered[own].any()) for own in of] == [False, False, True, False, False]
    assert [(one.turn, one.trait, one.layer, one.coefficient) for one in variant.additions] == [(2, "loud", 1, 2.0)]
    tokens = torch.tensor([one["projections"] for one in events if one["kind"] == "token"])
    torch.testing.assert_close(variant.projections[..., of[2]].permute(2, 0, 1), tokens, atol=6e-4, rtol=0)
    assert "loud × 2 at layer 1" in ask_server(app, "GET", f"{chat}/conversation.html")[2]


def test_the_exported_page_holds_what_was_said_as_text(app):
    chat = open_chat(app)
    answer(app, chat, text="<script>alert(1)</script><img src=x onerror=alert(2)>")
    page = ask_server(app, "GET", f"{chat}/conversation.html")[2]
    assert "<script>alert" not in page
    assert "<img" not in page


def test_asked_again_the_last_question_is_answered_anew_in_its_place(app):
    chat = open_chat(app)
    first = answer(app, chat, text="Hi")
    assert join(answer(app, chat, text="", coefficients={"loud": 20})) != join(first)
    assert join(answer(app, chat, text="")) == join(first)
    read = json.loads(ask_server(app, "GET", f"{chat}/conversation.json")[2])
    assert read["roles"] == ["user", "assistant"]


def test_one_answer_at_a_time_and_a_closed_tab_ends_its_own_and_takes_it_back(app):
    chat, other = open_chat(app), open_chat(app)
    parts = urlsplit(app.url)
    with closing(http.client.HTTPConnection(parts.hostname, parts.port, timeout=60)) as tab:
        body = json.dumps({"text": "Hi", "max_new_tokens": 900, "seed": 3})
        tab.request("POST", f"{chat}/answers", body, {"Content-Type": "application/json"})
        response = tab.getresponse()
        assert json.loads(response.readline())["kind"] == "read"
        status, _, said = ask_server(app, "POST", f"{other}/answers", {"text": "Hi"})
        assert status == 409
        assert "busy" in json.loads(said)["error"]
        response.close()
    begun = time.monotonic()
    while ask_server(app, "POST", f"{other}/answers", {"text": "Hi", "max_new_tokens": 1})[0] == 409:
        assert time.monotonic() - begun < 20
        time.sleep(0.05)
    # The page that lost its answer shows none, and so the chat has none.
    status, _, said = ask_server(app, "GET", f"{chat}/conversation.json")
    assert (status, "hold an answer" in said) == (400, True)


def test_stop_ends_the_answer_and_keeps_what_came(app):
    chat = open_chat(app)
    events = answer_and_stop(app, chat, text="Hi")
    assert events[-1] == {"kind": "end", "reason": "stopped", "kept": True}
    assert len(events) < 900


def test_a_chat_too_long_and_numbers_that_overflow_are_said_in_words_and_leave_the_chat_as_it_was(app):
    chat = open_chat(app)
    answer(app, chat, text="Hi")
    for content, words in (
        ({"text": "x" * 2000}, "too long for the model's context"),
        ({"text": "Hi", "max_new_tokens": 1020}, "too long for the model's context"),
    ):
        (event,) = answer(app, chat, **content)
        assert event["kind"] == "error"
        assert words in event["message"]
    assert json.loads(ask_server(app, "GET", f"{chat}/conversation.json")[2])["roles"] == ["user", "assistant"]


@pytest.mark.parametrize(
    "content",
    [
        [], {"text": 5}, {"text": "Hi", "coefficients": {"evil": 1}}, {"text": "Hi", "coefficients": {"loud": "1"}},
        {"text": "Hi", "coefficients": {"loud": 1e9}}, {"text": "Hi", "coefficients": {"loud": float("nan")}},
        {"text": "Hi", "colour": 1}, {"text": "x" * 300_000}, {"text": "\ud800"}, {"text": "Hi", "seed": True}, b"{",
        {"text": "Hi", "temperature": 10**400}, {"text": "Hi", "temperature": float("nan")},
        b"[" * 100_000,
    ],
)  # fmt: skip
def test_what_no_page_of_ours_sends_is_refused_in_words(app, content):
    status, _, body = ask_server(app, "POST", f"{open_chat(app)}/answers", content)
    assert status == 400
    assert "must" in json.loads(body)["error"]


@pytest.mark.parametrize(
    "content", [{"text": "Hi", "max_new_tokens": 0}, {"text": "Hi", "temperature": -1}, {"text": " "}]
)
def test_settings_that_sampling_refuses_come_back_as_an_error(app, content):
    (event,) = answer(app, open_chat(app), **content)
    assert event["kind"] == "error"


@pytest.mark.parametrize(
    ("headers", "method"),
    [
        ({"Host": "evil.example"}, "GET"), ({"Host": "evil.example"}, "POST"),
        ({"Origin": "http://evil.example"}, "POST"), ({"Origin": "null"}, "POST"),
        ({"Sec-Fetch-Site": "cross-site"}, "POST"),
    ],
)  # fmt: skip
def test_a_foreign_name_or_page_is_refused(app, headers, method):
    path = "/api/chats" if method == "POST" else "/api/setup"
    assert ask_server(app, method, path, {} if method == "POST" else None, headers)[0] == 403


def test_a_form_of_another_site_cannot_speak_json(app):
    assert ask_server(app, "POST", "/api/chats", b"{}", {"Content-Type": "text/plain"})[0] == 400


def test_every_answer_keeps_the_page_to_itself_and_nothing_in_it_comes_from_elsewhere(app):
    for path in ("/", "/static/app/app.js", "/api/setup", "/nothing"):
        headers = {name.lower(): value for name, value in ask_server(app, "GET", path)[1].items()}
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"


def test_an_unknown_chat_is_said_to_be_gone(app):
    status, _, body = ask_server(app, "GET", "/api/chats/nothing/conversation.json")
    assert status == 400
    assert "Begin a new chat" in json.loads(body)["error"]


def test_static_files_end_at_their_folder(app):
    for path in ("/static/../reading.py", "/static/%2e%2e/reading.py", "/static/app/../../reading.py"):
        assert ask_server(app, "GET", path)[0] == 404


def test_a_wider_address_comes_with_a_warning_and_loopback_without(model, vectors):
    with pl.live.start_app(model, vectors, layers=LAYERS, host="0.0.0.0", port=0) as running:
        assert "no password" in running.warning
        assert ask_server(running, "GET", "/api/setup")[0] == 200
        assert ask_server(running, "GET", "/api/setup", headers={"Host": "evil.example"})[0] == 403
    with pl.live.start_app(model, vectors, layers=LAYERS, host="localhost", port=0) as running:
        assert running.warning == ""
    with pytest.raises(ConnectionError):
        ask_server(running, "GET", "/")


def test_a_server_that_does_not_begin_is_an_error(model, vectors, monkeypatch):
    monkeypatch.setattr("uvicorn.Server.run", lambda self, sockets: None)
    with pytest.raises(pl.errors.ApiError, match="ended before it began"):
        pl.live.start_app(model, vectors, layers=LAYERS, port=0)
    monkeypatch.setattr("persona_lens.live.app._PATIENCE", 0.1)
    monkeypatch.setattr("uvicorn.Server.run", lambda self, sockets: time.sleep(0.5))
    with pytest.raises(pl.errors.ApiError, match=r"not begun within 0\.1 seconds"):
        pl.live.start_app(model, vectors, layers=LAYERS, port=0)


def test_after_a_stop_the_model_is_free(model, vectors):
    with pl.live.start_app(model, vectors, layers=LAYERS, port=0) as running:
        chat, parts = open_chat(running), urlsplit(running.url)
        with closing(http.client.HTTPConnection(parts.hostname, parts.port, timeout=60)) as tab:
            body = json.dumps({"text": "Hi", "max_new_tokens": 900, "seed": 3})
            tab.request("POST", f"{chat}/answers", body, {"Content-Type": "application/json"})
            assert json.loads(tab.getresponse().readline())["kind"] == "read"
            running.stop()
            assert not [one for one in threading.enumerate() if one.name == "persona-lens answer"]


def test_template_arguments_reach_the_answer(tmp_path):
    folder = shutil.copytree(save_tiny(tmp_path / "plain", "llama", n_ctx=1024), tmp_path / "hushing")
    make_tokenizer(template=CHATML + "{% if hush %}Hush! {% endif %}").save_pretrained(folder)
    hushing = pl.load_model(folder, dtype="float32", device="cpu")
    found = make_vectors(hushing)
    given = {"hush": True}
    with pl.live.start_app(hushing, found, layers=LAYERS, template_arguments=given, port=0) as running:
        answered = join(answer(running, open_chat(running), text="Hi"))
    sampling = pl.Sampling(max_new_tokens=6, temperature=0)
    assert answered == pl.ask(hushing, "Hi", sampling=sampling, template_arguments=given)
    assert answered != pl.ask(hushing, "Hi", sampling=sampling)
    with pytest.raises(InvalidArgumentError, match="which takes hush"):
        pl.live.start_app(hushing, found, layers=LAYERS, template_arguments={"loud": 1}, port=0)


def test_what_a_vector_says_it_was_tried_at_must_be_numbers(model, vectors):
    for setting, words in (({"layer": True}, "whole number"), ({"layer": 1, "coefficient": "much"}, "finite number")):
        tried = {"loud": replace(vectors["loud"], provenance={"setting": setting})}
        with pytest.raises(InvalidArgumentError, match=words):
            pl.live.start_app(model, tried, port=0)


def test_what_does_not_fit_is_refused_before_anything_is_served(app, model, vectors, tmp_path, tiny_model):
    start = pl.live.start_app
    with pytest.raises(InvalidArgumentError, match="`vectors` must hold at least one"):
        start(model, {})
    with pytest.raises(InvalidArgumentError, match="tried nowhere"):
        start(model, vectors)
    with pytest.raises(InvalidArgumentError, match="`layers` must be of traits"):
        start(model, vectors, layers={"evil": 1})
    with pytest.raises(pl.errors.LayerOutOfRangeError):
        start(model, vectors, layers={"loud": 3, "calm": 1})
    with pytest.raises(ModelMismatchError):
        start(model, {"evil": pl.load_vector("evil")})
    with pytest.raises(InvalidArgumentError, match="Give their vectors too"):
        start(model, {"loud": vectors["loud"]}, layers={"loud": 1}, monitor=make_monitor(model, vectors))
    port = int(app.url.rsplit(":", 1)[1].strip("/"))
    with pytest.raises(InvalidArgumentError, match="`port` must be free to listen on"):
        start(model, vectors, layers=LAYERS, port=port)
    with pytest.raises(InvalidArgumentError, match="`port` must be in"):
        start(model, vectors, layers=LAYERS, port=70_000)
