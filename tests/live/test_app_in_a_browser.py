"""The page in a real browser, with a tiny model behind it."""

import pytest

import persona_lens as pl
from tests.live.app_page import LAYERS, load_roomy, make_monitor, make_vectors
from tests.live.jupyter import open_page

pytest.importorskip("uvicorn", reason="the extra `app` is not installed")
pytest.importorskip("starlette", reason="the extra `app` is not installed")
playwright = pytest.importorskip("playwright.sync_api", reason="the extra `browser` is not installed")
pytestmark = pytest.mark.slow
HOSTILE = "<script>window.ran = 1</script><img src=x onerror='window.ran = 2'>"
PATIENCE = 60_000  # milliseconds; machines that are busy with other work are slow


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    model = load_roomy(tmp_path_factory.mktemp("roomy"))
    vectors = make_vectors(model)
    sampling = pl.Sampling(max_new_tokens=24, temperature=0)
    monitor = make_monitor(model, vectors)
    with pl.live.start_app(model, vectors, layers=LAYERS, monitor=monitor, sampling=sampling, port=0) as running:
        yield running


@pytest.fixture(scope="module")
def browser():
    with open_page() as (first, _):
        yield first.context.browser


@pytest.fixture
def page(browser, app):
    """The page, with whatever went wrong on it and wherever it asked for something."""
    opened = browser.new_page(viewport={"width": 1280, "height": 800})
    opened.set_default_timeout(PATIENCE)
    opened.asked_for, opened.wrong = [], []
    opened.on("request", lambda request: opened.asked_for.append(request.url))
    opened.on("pageerror", lambda error: opened.wrong.append(str(error)))
    opened.on("console", lambda message: opened.wrong.append(message.text) if message.type == "error" else None)
    opened.goto(app.url)
    opened.wait_for_selector("#sliders input")
    yield opened
    assert opened.wrong == []
    assert all(url.startswith(app.url) for url in opened.asked_for)  # nothing from elsewhere
    opened.close()


def ask(page, text, n_answers=1):
    page.fill("#text", text)
    page.press("#text", "Enter")
    wait_for_answers(page, n_answers)


def wait_for_answers(page, n_answers):
    # By selectors: the page's security policy lets no test evaluate code there while it waits.
    playwright.expect(page.locator(".assistant .note")).to_have_count(n_answers, timeout=PATIENCE)
    playwright.expect(page.locator("#stop")).to_be_disabled(timeout=PATIENCE)


def read_answer(page):
    return page.text_content(".assistant:last-of-type .tokens")


def list_colours(page):
    return page.eval_on_selector_all(".tokens span", "all => all.map(one => one.style.backgroundColor)")


def test_tokens_come_coloured_and_another_trait_and_layer_colour_them_otherwise(page):
    ask(page, "Hello")
    colours = list_colours(page)
    assert len(colours) == 24 + 5
    assert len(set(colours)) > 10
    page.select_option("#trait", "calm")
    assert page.input_value("#layer") == "2"
    assert list_colours(page) != colours
    calm = list_colours(page)
    page.focus("#layer")
    page.keyboard.press("ArrowLeft")
    assert list_colours(page) != calm
    assert "layer 1" in page.text_content("#charts")


def test_a_slider_moved_by_keys_changes_the_answer_asked_for_again(page):
    ask(page, "Hello")
    plain = read_answer(page)
    page.focus("#slide-loud")
    page.keyboard.press("End")
    page.click("#again")
    page.wait_for_selector(".assistant .note:has-text('steered: loud')")
    wait_for_answers(page, 1)
    assert read_answer(page) != plain
    page.click("#zero")
    page.click("#again")
    page.wait_for_selector(".assistant .note:has-text('unsteered')")
    wait_for_answers(page, 1)
    assert read_answer(page) == plain


def test_stop_ends_an_answer_and_what_came_stays(page):
    page.click("#drawing summary")
    page.fill("#max-new-tokens", "900")
    page.fill("#text", "Hello")
    page.click("#send")
    page.wait_for_selector(".assistant .tokens span:nth-child(4)")
    page.click("#stop")
    wait_for_answers(page, 1)
    assert "stopped" in page.text_content(".assistant .note")
    assert 3 < page.locator(".assistant .tokens span").count() < 900


def test_the_export_is_a_record_and_the_exported_page_runs_nothing_of_what_was_said(page, tmp_path):
    ask(page, HOSTILE)
    assert page.text_content(".user .tokens") == HOSTILE
    assert page.evaluate("window.ran") is None
    assert page.locator("#log img, #log script").count() == 0
    with page.expect_download() as download:
        page.click("#export-json")
    download.value.save_as(tmp_path / "chat.json")
    read = pl.live.ReadConversation.load(tmp_path / "chat.json")
    assert read.roles == ("user", "assistant")
    assert "".join(read.variants[0].texts).startswith(HOSTILE)
    with page.expect_download() as download:
        page.click("#export-page")
    download.value.save_as(tmp_path / "chat.html")
    other = page.context.browser.new_page()
    other.goto((tmp_path / "chat.html").as_uri())
    other.wait_for_selector("[data-persona-lens] .token")
    assert "onerror" in other.text_content("[data-persona-lens] .tokens")
    assert other.evaluate("window.ran") is None
    other.close()


def test_a_chat_too_long_is_said_in_words_and_the_question_is_still_there(page):
    ask(page, "Hello")
    page.fill("#text", "x" * 1500)
    page.click("#send")
    page.wait_for_selector("#error:not(:empty)")
    assert "too long for the model's context" in page.text_content("#error")
    assert page.input_value("#text") == "x" * 1500
    assert page.locator(".message").count() == 2


def test_tokens_can_be_read_by_keys_and_every_control_has_a_name(page):
    ask(page, "Hello")
    page.focus(".assistant .tokens span")
    page.keyboard.press("ArrowRight")
    assert page.text_content("#reading").startswith("Token 2, ")
    page.keyboard.press("Control+ArrowRight")  # not ours
    assert page.text_content("#reading").startswith("Token 2, ")
    nameless = page.evaluate(
        """[...document.querySelectorAll('input, select, textarea, button, a')].filter(
            (one) => !(one.labels?.length || one.getAttribute('aria-label') || one.textContent.trim())
        ).map((one) => one.id)"""
    )
    assert nameless == []


def test_turns_are_drawn_with_the_monitors_thresholds_and_their_numbers(page):
    ask(page, "Hello", 1)
    ask(page, "And you?", 2)
    assert page.locator("#charts svg").count() == 2
    for figure, what in (("first", "prompts"), ("last", "answers")):
        assert f"95% of ordinary {what}" in page.text_content(f"#charts figure:{figure}-child")
        assert page.locator(f"#charts figure:{figure}-child tbody tr").count() == 2 + 2  # turns and thresholds
    page.focus("#layer")
    page.keyboard.press("ArrowRight")  # the monitor knows what is ordinary at its own layer alone
    assert page.locator("#charts figure:last-child tbody tr").count() == 2


def test_on_a_phone_nothing_is_wider_than_the_screen(browser, app):
    page = browser.new_page(viewport={"width": 375, "height": 740})
    page.goto(app.url)
    page.wait_for_selector("#sliders input")
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    page.close()


def test_a_page_of_another_origin_can_neither_ask_nor_read(browser, app, tmp_path):
    page = browser.new_page()
    (tmp_path / "evil.html").write_text("<title>evil</title>")
    page.goto((tmp_path / "evil.html").as_uri())
    outcome = page.evaluate(
        """(url) => fetch(url + 'api/chats', {method: 'POST', mode: 'no-cors', body: '{}'})
            .then((response) => response.type, (error) => 'refused')""",
        app.url,
    )
    assert outcome in ("opaque", "refused")  # whatever came back, the page cannot see it
    assert page.evaluate("(url) => fetch(url).then(() => 'read', () => 'refused')", app.url) == "refused"
    page.close()
