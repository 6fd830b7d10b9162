import io
import time
from contextlib import redirect_stderr

import pytest
from tqdm import tqdm as terminal_bar

import persona_lens as pl
from persona_lens import progress_bars


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def at_once(monkeypatch):
    """Bars that appear at once, whether or not the tests run in a notebook's kernel."""
    monkeypatch.setattr(progress_bars, "_SHOWN_AFTER", 0.0)
    monkeypatch.setattr(progress_bars, "tqdm", terminal_bar)
    yield
    pl.progress(True)


def work(stream):
    # Inside the test: pytest sets standard error anew after the fixtures.
    with redirect_stderr(stream), pl.Run().progress("counting", 3) as advance:
        for _ in range(3):
            advance(1)
    return stream.getvalue()


def test_long_work_shows_a_bar_unasked(at_once):
    shown = work(Terminal())
    assert "counting" in shown
    assert "0/3" in shown


def test_turned_off_no_bar_is_shown_until_turned_on_again(at_once):
    pl.progress(False)
    assert work(Terminal()) == ""
    pl.progress(True)
    assert "counting" in work(Terminal())


def test_where_standard_error_is_no_terminal_there_is_no_bar(at_once):
    assert work(io.StringIO()) == ""


def test_work_that_does_not_advance_for_long_is_shown_all_the_same(at_once, monkeypatch):
    monkeypatch.setattr(progress_bars, "_SHOWN_AFTER", 0.01)
    stream = Terminal()
    with redirect_stderr(stream), pl.Run().progress("one long batch", 3):
        deadline = time.monotonic() + 10
        while "one long batch" not in stream.getvalue():
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_work_of_less_than_five_seconds_shows_none():
    assert work(Terminal()) == ""
