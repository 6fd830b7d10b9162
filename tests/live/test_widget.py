import base64
import math
import shutil
import threading

import nbformat
import pytest
import torch

import persona_lens as pl
from persona_lens.live.static_page import read_module
from tests.live.jupyter import open_page, serve_lab

SAMPLING = pl.Sampling(max_new_tokens=5)


@pytest.fixture
def live(tiny_model, vectors):
    pytest.importorskip("anywidget", reason="the extra `widget` is not installed")
    return pl.live.show(tiny_model, "Hi", vectors, coefficients=(0.0, 1.0), layer=1, sampling=SAMPLING)


@pytest.fixture
def told(live, monkeypatch):
    """What the page is sent; it goes nowhere without a notebook."""
    sent = []
    monkeypatch.setattr(live.widget, "send", lambda message: sent.append(message))
    return sent


def ask(live, **message):
    """As the page does."""
    live._handle(live.widget, message, [])
    live.wait()


def test_a_coefficient_is_sampled_token_by_token_and_added(tiny_model, vectors, live, told):
    ask(live, type="sample", coefficient=2.5)
    assert [message["type"] for message in told][:: len(told) - 1] == ["begin", "end"]
    assert live.conversation.coefficients == (0.0, 1.0, 2.5)
    variant = live.conversation.of(2.5)
    assert sum(len(message["texts"]) for message in told[:-1]) == len(variant.texts)
    # What was read as it came is what the finished text gives.
    steered = pl.steer(vectors["loud"], layer=1, coefficient=2.5)
    tokens = list(
        pl.monitoring.stream_tokens(
            tiny_model, [{"role": "user", "content": "Hi"}], vectors, intervention=steered, sampling=SAMPLING
        )
    )
    assert variant.texts[-len(tokens) :] == tuple(token.text for token in tokens)
    torch.testing.assert_close(variant.projections[..., -1], tokens[-1].projections, rtol=1e-4, atol=1e-4)
    assert live.widget.payload["variants"][2]["coefficient"] == 2.5


def test_a_new_question_begins_anew_without_steering_and_with_it(live, told):
    ask(live, type="ask", question="Well?", coefficient=1.0)
    read = live.conversation
    assert read.coefficients == (0.0, 1.0)
    said = [text for text, turn in zip(read.of(1.0).texts, read.of(1.0).turns, strict=True) if turn == 0]
    assert "".join(said) == "Well?"
    assert [message["known"] for message in told if message["type"] == "begin"] == [[], [0.0]]


def test_a_finished_conversation_is_read_under_another_coefficient_as_it_is(tiny_model, vectors):
    pytest.importorskip("anywidget", reason="the extra `widget` is not installed")
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes."}]
    live = pl.live.show(tiny_model, chat, vectors, coefficients=(0.0,), layer=1)
    ask(live, type="sample", coefficient=3.0)
    assert live.conversation.of(3.0).texts == live.conversation.of(0.0).texts
    assert live.conversation.of(3.0).steered.any()


def test_a_stop_keeps_what_there_is_and_another_question_does_not(tiny_model, vectors, monkeypatch):
    pytest.importorskip("anywidget", reason="the extra `widget` is not installed")
    sampling = pl.Sampling(max_new_tokens=100)
    live = pl.live.show(tiny_model, "Hi", vectors, coefficients=(0.0,), layer=1, sampling=sampling)
    come = threading.Event()
    monkeypatch.setattr("persona_lens.live.widget._SENT_EVERY", 0.0)
    monkeypatch.setattr(live.widget, "send", lambda message: come.set() if message["type"] == "tokens" else None)

    def begin(coefficient):
        come.clear()
        live._handle(live.widget, {"type": "sample", "coefficient": coefficient}, [])
        assert come.wait(60)

    begin(3.0)
    ask(live, type="stop")
    assert len(live.conversation.of(3.0).texts) < len(live.conversation.of(0.0).texts)
    begin(4.0)
    begin(5.0)
    ask(live, type="stop")
    assert live.conversation.coefficients == (0.0, 3.0, 5.0)


def test_what_goes_wrong_is_told_on_the_page_and_nothing_is_lost(live, told):
    before = live.conversation
    ask(live, type="sample", coefficient=1e38)
    assert told[-1]["type"] == "error"
    assert "`coefficient` must" in told[-1]["text"]
    assert live.conversation is before


def test_where_the_second_answer_goes_wrong_the_page_gets_the_first(live, told):
    ask(live, type="ask", question="Why?", coefficient=1e37)
    assert told[-1]["type"] == "error"
    assert live.conversation.coefficients == (0.0,)
    assert [one["texts"] for one in live.widget.payload["variants"]] == [list(live.conversation.of(0.0).texts)]


def test_a_finished_conversation_that_overflows_is_an_error_on_the_page(tiny_model, vectors, monkeypatch):
    pytest.importorskip("anywidget", reason="the extra `widget` is not installed")
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes."}]
    live = pl.live.show(tiny_model, chat, vectors, coefficients=(0.0,), layer=1)
    sent = []
    monkeypatch.setattr(live.widget, "send", sent.append)
    with tiny_model.hooks(fwd_hooks=[("blocks.1.hook_resid_post", lambda residual, hook: residual * math.inf)]):
        ask(live, type="sample", coefficient=1.0)
    assert [message["type"] for message in sent] == ["error"]
    assert live.conversation.coefficients == (0.0,)


def test_a_notebook_gets_a_page_that_the_kernel_finds_again(live):
    assert f'data-persona-lens="{live.widget.key}"' in live._repr_html_()
    assert live.widget.payload["variants"][1]["coefficient"] == 1.0


KERNEL = """async ([source, payload]) => {
    const heard = {};
    const model = {
        payload, sent: [],
        get: () => model.payload,
        send: (message) => model.sent.push(message),
        on: (name, hear) => { heard[name] = hear; },
        off: () => {},
        tell: (message) => heard["msg:custom"](message),
        keep: (payload) => { model.payload = payload; heard["change:payload"](); },
    };
    const {default: widget} = await import(`data:text/javascript;base64,${source}`);
    widget.render({model, el: document.body.appendChild(document.createElement("div"))});
    window.model = model;
}"""


@pytest.mark.slow
def test_the_page_follows_a_kernel_that_is_broken_off_fails_and_goes(live, told):
    ask(live, type="sample", coefficient=2.5)
    begin, *tokens, end = told
    full, first = live._pack(), {**live._pack(), "variants": live._pack()["variants"][:2]}
    with open_page() as (page, wrong):
        source = base64.b64encode(read_module().encode()).decode()
        page.evaluate(KERNEL, [source, first])

        def tell(message):
            page.evaluate("(message) => model.tell(message)", message)

        def shown():
            return page.locator(".panel h4").all_text_contents()

        exact, stop = page.get_by_label("exactly"), page.get_by_role("button", name="Stop")
        exact.fill("2.5")
        exact.press("Enter")
        page.wait_for_function("model.sent.length === 1")
        # What came before, a new question's payload say, does not take the coefficient away that is waited for.
        page.evaluate("(payload) => model.keep(payload)", first)
        assert exact.input_value() == "2.5"
        # Another that is asked for breaks it off, and can be stopped itself.
        exact.fill("2.25")
        exact.press("Enter")
        page.wait_for_function("model.sent.length === 2")
        tell(begin)
        tell({"type": "end", "text": "stopped"})
        assert stop.is_disabled()
        tell({**begin, "coefficient": 2.25})
        assert stop.is_enabled()
        assert shown() == ["Unsteered", "Coefficient 2.25"]
        # It fails: what had come of it goes, and what was read stands.
        for message in tokens:
            tell({**message, "coefficient": 2.25})
        tell({"type": "error", "text": "It overflows."})
        assert page.locator(".status.wrong").inner_text() == "It overflows."
        assert shown() == ["Unsteered", "Coefficient 1.00"]
        assert exact.input_value() == "1"
        # One that came whole stays.
        exact.fill("2.5")
        exact.press("Enter")
        page.wait_for_function("model.sent.length === 3")
        for message in (begin, *tokens):
            tell(message)
        page.evaluate("(payload) => model.keep(payload)", full)
        tell(end)
        assert shown() == ["Unsteered", "Coefficient 2.50"]
        # Chosen, and then one that is there: nothing is about to be sampled any more.
        for value in ("3", "1"):
            exact.fill(value)
            exact.press("Enter")
        assert page.locator(".root > .status").inner_text() == ""
        page.wait_for_timeout(500)
        assert page.evaluate("model.sent.length") == 3
        assert not wrong


CELL = """
import torch
import persona_lens as pl
model = pl.load_model({folder!r}, dtype="float32", device="cpu")
directions = torch.randn(2, 3, 48, generator=torch.Generator().manual_seed(0))
info = pl.describe_model(model)
vectors = {{
    name: pl.PersonaVector(name, info, {{"response_mean": one}})
    for name, one in zip(("loud", "kind"), directions)
}}
pl.live.show(model, "Hi", vectors, coefficients=(0, 1), layer=1, sampling=pl.Sampling(max_new_tokens=8))
"""


@pytest.mark.slow
def test_jupyterlab_shows_it_and_its_kernel_samples_what_is_asked_for(tiny_folder, tmp_path):
    book = nbformat.v4.new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})
    book.cells = [nbformat.v4.new_code_cell(CELL.format(folder=tiny_folder("llama")).strip())]
    nbformat.write(book, tmp_path / "book.ipynb")
    with serve_lab(tmp_path, "JupyterLab Dark") as lab, open_page() as (page, wrong):
        page.goto(lab.url.format("book.ipynb"))
        page.locator(".jp-CodeCell").first.click()
        page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]").wait_for()
        wrong.clear()  # what JupyterLab itself misses when it opens
        page.keyboard.press("Shift+Enter")
        root = page.locator(".jp-OutputArea .root.dark")
        root.locator("form").wait_for()  # the kernel has taken the page over
        panels = root.locator(".panel")
        assert panels.locator("h4").all_text_contents() == ["Unsteered", "Coefficient 1.00"]
        steered = panels.nth(1).locator(".token")
        assert steered.count() == 2 + 8

        before = steered.evaluate_all("all => all.map(one => one.style.background)")
        root.get_by_label("Layer").press("ArrowRight")
        assert steered.evaluate_all("all => all.map(one => one.style.background)") != before

        steered.nth(0).focus()
        page.keyboard.press("ArrowRight")
        assert steered.nth(1).evaluate("one => one === one.getRootNode().activeElement")
        assert "user, layer 2, not steered" in root.locator(".readout").inner_text()

        root.get_by_role("slider", name="Coefficient").press("ArrowLeft")
        root.get_by_text("Coefficient 0.75: sampled 8 tokens").wait_for()
        assert panels.locator("h4").all_text_contents() == ["Unsteered", "Coefficient 0.75"]
        root.get_by_label("A new question").fill("<i>You?")
        page.keyboard.press("Enter")
        panels.nth(1).locator(".turn").filter(has_text="<i>You?").wait_for()  # its beginning
        root.get_by_text("Coefficient 0.75: sampled 8 tokens").wait_for()
        assert "".join(panels.nth(1).locator(".turn").nth(0).locator(".token").all_text_contents()) == "<i>You?"
        assert not wrong

        # Saved, and opened with another kernel: the page stays, and there is nothing to ask.
        page.locator(".jp-CodeCell .jp-InputArea-editor").first.click()  # out of the view, which keeps keys to itself
        page.keyboard.press("Escape")
        page.keyboard.press("Control+s")
        for _ in range(200):
            saved = (tmp_path / "book.ipynb").read_text()
            if "data-persona-lens" in saved:
                break
            page.wait_for_timeout(100)
        assert "data-persona-lens" in saved
        assert len(saved) < 100_000
        shutil.copy(tmp_path / "book.ipynb", tmp_path / "again.ipynb")
        # In a workspace of its own: beside the first notebook, that one's kernel would take it over.
        page.goto(lab.url.format("again.ipynb").replace("/lab/tree/", "/lab/workspaces/again/tree/"))
        root = page.locator(".jp-OutputArea .root.dark")
        root.wait_for()
        assert root.locator("h4").all_text_contents() == ["Unsteered", "Coefficient 1.00"]
        root.get_by_role("slider", name="Coefficient").press("ArrowLeft")
        assert root.locator("h4").all_text_contents() == ["Unsteered"]
        assert root.locator("form").count() == 0
