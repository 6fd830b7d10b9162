"""``persona-lens chat``, through a pipe and in a terminal of its own."""

import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from rich.text import Text

import persona_lens as pl
from persona_lens.cli.chat_commands import WORDS, change_settings, write_help
from persona_lens.cli.chat_state import Chat, Settings
from persona_lens.cli.chat_view import draw_token, make_printable
from persona_lens.errors import InvalidArgumentError
from tests.cli.test_commands import run

TRAITS = ["loud", "shy"]
PLAIN = Settings("loud", None, {}, {"loud": 1, "shy": 2})


@pytest.fixture(scope="module")
def setting(tmp_path_factory, roomy_folder):
    """Two vectors of a tiny model, and its monitor."""
    folder, name = tmp_path_factory.mktemp("chat"), str(roomy_folder)
    model = pl.load_model(name, device="cpu")
    vectors = {}
    for seed, trait in enumerate(TRAITS):
        directions = torch.randn(3, 48, generator=torch.Generator().manual_seed(seed))
        vectors[trait] = pl.PersonaVector(trait, pl.describe_model(model), {"response_mean": directions})
        vectors[trait].save(folder / f"{trait}.safetensors")
    questions = [[{"role": "user", "content": text}] for text in ("Hi", "Why?", "And?")]
    monitor = pl.PersonaMonitor.calibrate(
        model, vectors, dict.fromkeys(TRAITS, 1), ordinary=questions,
        responses=pl.Sampling(max_new_tokens=24, rollouts=4),
    )  # fmt: skip
    monitor.save(folder / "monitor.json")
    options = ["--model", name, "--layer", "1", "--monitor", folder / "monitor.json", "--max-new-tokens", "16"]
    for trait in TRAITS:
        options += ["--vector", folder / f"{trait}.safetensors"]
    return SimpleNamespace(folder=folder, options=[str(one) for one in options], monitor=monitor)


def pipe(setting, monkeypatch, lines, *options):
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    return run("chat", *setting.options, *options)


def test_through_a_pipe_each_line_is_a_question_or_a_command_and_the_text_is_plain(setting, monkeypatch):
    path = setting.folder / "chat.json"
    done = pipe(setting, monkeypatch, f"Who?\n/loud 50\nWho?\n\n/drift\n/save {path}\n")
    assert done.status == 0, done.err
    assert "\x1b" not in done.out
    assert "steered: loud +50 at layer 1" in done.out
    assert "ALARM: above 12 of 12 measured answers" in done.out
    assert "steered +50" in done.out.partition("mean projection of each answer")[2]
    chat = Chat.load(path)
    assert [turn.strengths for turn in chat.turns] == [{}, {"loud": 50.0}]
    assert [turn.question for turn in chat.turns] == ["Who?", "Who?"]
    assert len(chat.turns[0].tokens) == 16
    assert chat.turns[1].mean("loud") > chat.turns[0].mean("loud") + 40


def test_the_first_answer_is_the_one_that_ask_gives(setting, monkeypatch):
    done = pipe(setting, monkeypatch, "Who?\n", "--json")
    shown = json.loads(done.out)
    model = pl.load_model(setting.options[1], device="cpu")
    assert shown["turns"][0]["answer"] == pl.ask(model, "Who?", sampling=pl.Sampling(max_new_tokens=16))
    assert shown["turns"][0]["ended"] == "end"


def test_an_alarm_ends_the_answer_where_that_was_asked_for(setting, monkeypatch):
    done = pipe(setting, monkeypatch, "/alarm stop\n/loud 50\nWho?\n", "--json")
    (turn,) = json.loads(done.out)["turns"]
    assert turn["ended"] == "alarm"
    assert len(turn["tokens"]) == 8


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("", "hold a question on a line"),
        ("/loude 1\n", "Did you mean /loud?"),
        ("/loud much\n", "be a number"),
        ("/layer loud 3\n", r"be in \[0, 3\)"),
        ("/layer loud --1\n", "be a trait and a number"),
        ("\udcff\n", "be UTF-8"),
        ("/save\n", "As in: /save chat.json"),
        ("/watch evil\n", "be one of loud, shy"),
        ("/save {folder}/monitor.json/chat.json\n", "must lie in folders"),
    ],
)
def test_through_a_pipe_what_is_wrong_ends_the_command_with_status_2(setting, monkeypatch, lines, said):
    done = pipe(setting, monkeypatch, lines.format(folder=setting.folder))
    assert done.status == 2
    assert re.search(said, done.err)
    assert "Traceback" not in done.err


def test_what_is_wrong_is_said_before_a_model_is_loaded(setting, monkeypatch):
    monkeypatch.setattr("persona_lens.cli.choosing.load_model", lambda *name, **more: pytest.fail("loaded"))
    other = replace(pl.PersonaVector.load(setting.folder / "shy.safetensors"), trait="loud")
    other.save(setting.folder / "other.safetensors")
    vectors = ("--vector", setting.folder / "other.safetensors", "--vector", setting.folder / "shy.safetensors")
    kept = ("--layer", 1, "--monitor", setting.folder / "monitor.json")
    for stdin, options, said in (
        (io.StringIO("Who?"), (*vectors, *kept), "of another vector of loud"),
        (io.StringIO("Who?"), (*vectors[2:], *kept), "watch responses for the traits and layers asked for"),
        (io.StringIO("Who?"), ("--model", "some/model"), "be given for another model"),
        (io.StringIO("Who?"), vectors, "--layer 1 is a beginning"),
        (io.StringIO("Who?"), (*vectors, "--layer", 1, "--template-arguments", "hush"), "be one JSON object"),
        (io.StringIO("Who?"), (*vectors, "--layer", 1, "--max-new-tokens", 0), "max_new_tokens"),
        (io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), "utf-8"), (), "`standard input` must be UTF-8"),
    ):
        monkeypatch.setattr(sys, "stdin", stdin)
        done = run("chat", *options)
        assert done.status == 2
        assert said in done.err
        assert "--coefficient" not in done.err


def test_a_monitor_of_another_model_is_refused_before_anything_is_answered(setting, monkeypatch, tmp_path):
    other = replace(setting.monitor, model=replace(setting.monitor.model, fingerprint="other"))
    other.save(tmp_path / "other.json")
    done = pipe(setting, monkeypatch, "Who?\n", "--monitor", tmp_path / "other.json")
    assert done.status == 2
    assert "`--monitor` must be of the model" in done.err
    assert not done.out


def test_ordinary_answers_are_measured_as_long_as_the_chats_own_are(setting, monkeypatch):
    asked = []

    def measure(model, vectors, layers, **how):
        asked.append(how)
        return setting.monitor

    monkeypatch.setattr("persona_lens.cli.chatting.PersonaMonitor.calibrate", measure)
    at = setting.options.index("--monitor")
    options = setting.options[:at] + setting.options[at + 2 :]
    monkeypatch.setattr(sys, "stdin", io.StringIO("Who?\n"))
    done = run("chat", *options, "--max-new-tokens", 100)
    assert done.status == 0
    assert asked[0]["responses"].max_new_tokens == 100
    assert asked[0]["quantiles"] == (0.95,)
    # A monitor that was kept may know shorter answers only.
    assert "ordinary answers had at most 24 tokens" in done.err


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt(), 130), (pl.errors.NonFiniteError("too strong"), 2)])
def test_through_a_pipe_what_breaks_an_answer_off_ends_the_command(setting, monkeypatch, error, status):
    shown = []

    def draw(token, trait):
        if len(shown) == 3:
            raise error
        shown.append(token)
        return draw_token(token, trait)

    monkeypatch.setattr("persona_lens.cli.chatting.draw_token", draw)
    done = pipe(setting, monkeypatch, "Who?\nAnd why?\n")
    assert done.status == status
    assert "Broken off." in done.out
    assert "And why?" not in done.out


def test_commands_change_what_they_name_and_nothing_else():
    changed = change_settings(PLAIN, "loud", "-1.5", TRAITS, 3)
    assert (changed.strengths, changed.layers) == ({"loud": -1.5}, PLAIN.layers)
    assert change_settings(changed, "loud", "0", TRAITS, 3) == PLAIN
    assert change_settings(changed, "loud", "", TRAITS, 3) is changed
    assert change_settings(PLAIN, "layer", "shy 0", TRAITS, 3).layers == {"loud": 1, "shy": 0}
    assert change_settings(PLAIN, "layer", "2", TRAITS, 3).layers == {"loud": 2, "shy": 2}
    assert change_settings(PLAIN, "system", "Be kind.", TRAITS, 3).system == "Be kind."
    assert change_settings(PLAIN, "watch", "shy", TRAITS, 3).coloured == "shy"
    for text in ("nan", "inf", "1e999", "one", "1 2"):
        with pytest.raises(InvalidArgumentError):
            change_settings(PLAIN, "loud", text, TRAITS, 3)
    for text in ("", "loud", "evil 1", "loud -1", "3", "1.5", "loud --1", "loud ²", "loud " + "9" * 5000):
        with pytest.raises(InvalidArgumentError):
            change_settings(PLAIN, "layer", text, TRAITS, 3)


def test_help_names_every_command_and_trait():
    text = write_help(TRAITS)
    for word in (*WORDS, *TRAITS):
        assert f"/{word}" in text or word in text


def test_a_models_text_cannot_steer_the_terminal():
    assert make_printable("a\x1b[2J\x07b\u202ec\n\td") == "a�[2J�b�c\n\td"


def test_a_tokens_ground_is_orange_above_the_ordinary_and_blue_below(setting):
    trait = setting.monitor.traits[0]
    low, middle, high = (trait.responses.tokens[i] for i in (0, round((len(trait.responses.tokens) - 1) / 2), -1))
    grounds = []
    for projection in (low, middle, high):
        reading = trait.read_token(0, projection, projection)
        token = pl.monitoring.TokenReading(0, 1, "x", (reading,), (1,))
        drawn = draw_token(token, trait)
        assert isinstance(drawn, Text)
        grounds.append(re.search("on (#......)", str(drawn.spans[0].style)).group(1))
        assert any("underline" in str(span.style) for span in drawn.spans)
    assert grounds == ["#56b4e9", "#ffffff", "#e69f00"]


_GROUND = "\x1b[38;2;0;0;0;48;2;"  # what a coloured token begins with


@pytest.mark.parametrize("presses", [1, 2])
def test_the_first_ctrl_c_waits_for_the_token_under_way_and_the_second_does_not(setting, monkeypatch, presses):
    """At whatever it comes: raised in a destructor, as here, it would be ignored."""

    class Gone:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)

    def draw(token, trait):
        Gone()
        for _ in range(presses - 1):
            signal.raise_signal(signal.SIGINT)
        shown.append(token)
        return Text()

    shown = []
    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr("persona_lens.cli.chatting.draw_token", draw)
    assert pipe(setting, monkeypatch, "Who?\n", "--json").status == 130
    assert len(shown) == 2 - presses
    assert signal.getsignal(signal.SIGINT) is before


class Terminal:
    """A program in a terminal of its own, of which all that it shows is kept."""

    def __init__(self, *arguments, columns=100):
        ours, theirs = pty.openpty()
        environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": str(columns), "COLORTERM": "truecolor"}
        environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        code = "from persona_lens.cli.main import main; main()"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, *arguments], stdin=theirs, stdout=theirs, stderr=theirs,
            env=environment, start_new_session=True, preexec_fn=_take_terminal,
        )  # fmt: skip
        os.close(theirs)
        self.ours, self.shown, self.seen = ours, "", 0

    def wait_for(self, text, seconds=300):
        """Read on until a text has been shown behind the one waited for before; return all up to its end."""
        end = time.monotonic() + seconds
        while (at := self.shown.find(text, self.seen)) < 0:
            assert time.monotonic() < end, f"{text!r} did not come: {self.shown[self.seen :]!r}"
            if select.select([self.ours], [], [], 1.0)[0]:
                try:
                    # Little by little: what is not read holds up a program that shows 36 kB, until Ctrl-C comes.
                    self.shown += os.read(self.ours, 256).decode(errors="replace")
                except OSError as gone:  # the other side is closed
                    raise AssertionError(f"{text!r} did not come: {self.shown[self.seen :]!r}") from gone
        before, self.seen = self.seen, at + len(text)
        return self.shown[before : self.seen]

    def type(self, text):
        os.write(self.ours, text.encode())

    def repeat_until(self, act, text):
        """Do something until a text comes: Python's readline overlooks a signal that comes as the prompt is drawn."""
        for _ in range(5):
            act()
            try:
                return self.wait_for(text, 5)
            except AssertionError as error:
                missing = error
                self.type("\n")  # to another prompt: at one that overlooked a signal, later ones may go the same way
        raise missing

    def end(self):
        self.process.wait(60)
        return self.process.returncode

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        os.close(self.ours)


def _take_terminal():
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that Ctrl-C typed into it becomes a signal


@pytest.mark.slow
def test_in_a_terminal_tokens_are_coloured_ctrl_c_stops_an_answer_and_ctrl_d_ends(setting):
    with Terminal("chat", *(one if one != "16" else "800" for one in setting.options)) as terminal:
        terminal.wait_for("you> ")
        terminal.type("/help\n")
        assert "/loud 1.5" in terminal.wait_for("and the same question again")
        terminal.wait_for("you> ")
        terminal.type("Who?\n")
        terminal.wait_for(_GROUND)
        terminal.type("\x03")
        terminal.wait_for("Broken off.")
        terminal.wait_for("you> ")
        terminal.type("/loude 1\n")
        terminal.wait_for("Did you mean /loud?")
        terminal.wait_for("you> ")
        terminal.repeat_until(lambda: terminal.type("\x03"), "/quit or Ctrl-D")
        terminal.wait_for("you> ")
        terminal.type("/loud 50\n")
        terminal.wait_for("steered: loud +50")
        terminal.wait_for("you> ")
        terminal.type("/alarm stop\n")
        terminal.wait_for("you> ")
        terminal.type("/new\n")
        terminal.wait_for("you> ")
        terminal.type("And now?\n")
        assert "48;2;230;159;0" in terminal.wait_for("Ended by the alarm.")
        terminal.wait_for("you> ")
        terminal.type("/drift\n")
        terminal.wait_for("ALARM, above 99%")
        terminal.wait_for("you> ")
        terminal.type("\x04")
        assert terminal.end() == 0


@pytest.mark.slow
def test_sigterm_ends_the_chat_with_its_status(setting):
    with Terminal("chat", *setting.options) as terminal:
        terminal.wait_for("you> ")
        terminal.repeat_until(lambda: terminal.process.send_signal(signal.SIGTERM), "Ended by SIGTERM")
        assert terminal.end() == 143
