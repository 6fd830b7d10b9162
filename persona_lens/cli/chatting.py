"""``persona-lens chat``: a conversation whose tokens are read as they come, in a terminal or through a pipe."""

from __future__ import annotations

import contextlib
import importlib
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

import torch
from rich.console import Console
from rich.text import Text

from persona_lens.cli.arguments import Chat as ChatArguments
from persona_lens.cli.chat_commands import (
    change_settings,
    check_save_path,
    check_word,
    describe_settings,
    split_command,
    write_help,
)
from persona_lens.cli.chat_state import Chat, ChatTurn, Settings
from persona_lens.cli.chat_view import describe_turn, draw_drift, draw_token, make_printable
from persona_lens.cli.choosing import Way, choose_sampling, find_ways, load
from persona_lens.cli.terminal import make_console, print_json
from persona_lens.errors import ContextLengthError, InvalidArgumentError, PersonaLensError
from persona_lens.models.engine.requests import Sampling
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.loading import describe_model
from persona_lens.monitoring.alarms import GoOn, Stop, TokenReading
from persona_lens.monitoring.monitor import PersonaMonitor
from persona_lens.vectors.persona_vector import PersonaVector

_ROLLOUTS = 2
_QUANTILES = (0.95,)  # some 80 answers are measured, too few for a threshold that one in a hundred exceeds
_PROMPT = "you> "


def run(arguments: ChatArguments) -> int:
    """Chat until the user ends it, or the pipe does."""
    if arguments.json and sys.stdin.isatty():
        raise InvalidArgumentError.of("--json", "be left out in a terminal", True, "Pipe questions in, or /save.")
    lines = () if sys.stdin.isatty() else read_lines()
    ways = find_ways(arguments)
    vectors = {trait: way.vector for trait, way in ways.items()}
    layers = {trait: way.layer for trait, way in ways.items()}
    sampling = Sampling(arguments.max_new_tokens, seed=arguments.seed)
    kept = read_monitor(arguments.monitor, ways)
    model = load(arguments)
    for vector in vectors.values():
        vector.check_model(model)
    sampling = replace(sampling, temperature=choose_sampling(model).temperature)
    monitor = measure_monitor(arguments, model, ways, sampling) if kept is None else kept
    check_monitor(monitor, model, sampling)
    settings = Settings(coloured=next(iter(ways)), system=arguments.system, strengths={}, layers=layers)
    talk = Talk(model, monitor, vectors, sampling, settings, Chat(monitor.model, monitor.traits), make_console())
    return talk.talk_through_pipe(lines, arguments.json) if lines else talk.talk_in_terminal()


def read_lines() -> list[str]:
    """Read what the pipe holds, before a model is loaded.

    Raises:
        InvalidArgumentError: No text, or nothing in it.
    """
    try:
        text = sys.stdin.read()
    except UnicodeDecodeError as error:
        raise _refuse_text(error) from None
    check_text(text)
    lines = [line for line in text.split("\n") if line.strip()]
    if not lines:
        raise InvalidArgumentError.of("standard input", "hold a question on a line", "nothing")
    return lines


def check_text(text: str) -> None:
    """Refuse what was no UTF-8: where the system's encoding is ASCII, Python lets its bytes through in disguise.

    Raises:
        InvalidArgumentError: It was none.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise _refuse_text(error) from None


def _refuse_text(error: UnicodeError) -> PersonaLensError:
    return InvalidArgumentError.of("standard input", "be UTF-8", str(error), "`iconv -t UTF-8` makes it so.")


def read_monitor(path: Path | None, ways: Mapping[str, Way]) -> PersonaMonitor | None:
    """Read the monitor's file; None where there is none yet.

    Raises:
        InvalidArgumentError: A monitor of other traits, layers or vectors, or one that watches no responses.
    """
    if path is None or not path.exists():
        return None
    monitor = PersonaMonitor.load(path)
    hint = "Name another file."
    kept = {one.trait: one.layer for one in monitor.traits}
    if kept != {trait: way.layer for trait, way in ways.items()} or not monitor.watches_responses:
        rule = "watch responses for the traits and layers asked for"
        raise InvalidArgumentError.of("--monitor", rule, f"{path}, of {kept}", hint)
    for one in monitor.traits:
        if not torch.allclose(one.unit, ways[one.trait].vector.units[one.layer], atol=1e-5):
            rule = "be calibrated for the vectors asked for"
            raise InvalidArgumentError.of("--monitor", rule, f"{path}, of another vector of {one.trait}", hint)
    return monitor


def measure_monitor(
    arguments: ChatArguments, model: HookedModel, ways: Mapping[str, Way], sampling: Sampling
) -> PersonaMonitor:
    """Measure what is ordinary for answers as long as the chat's, and write it where a file was named."""
    print("Measuring what is ordinary for this model (--monitor FILE keeps it) ...", file=sys.stderr)
    vectors = {trait: way.vector for trait, way in ways.items()}
    layers = {trait: way.layer for trait, way in ways.items()}
    monitor = PersonaMonitor.calibrate(
        model, vectors, layers, quantiles=_QUANTILES, responses=replace(sampling, rollouts=_ROLLOUTS),
        seed=arguments.seed,
    )  # fmt: skip
    if arguments.monitor is not None:
        monitor.save(arguments.monitor)
    return monitor


def check_monitor(monitor: PersonaMonitor, model: HookedModel, sampling: Sampling) -> None:
    """Refuse a monitor of another model; say where it was calibrated on shorter answers than the chat's.

    Raises:
        InvalidArgumentError: Another model.
    """
    if monitor.model.fingerprint != (info := describe_model(model)).fingerprint:
        rule, got = f"be of the model, {info.name} (fingerprint {info.fingerprint})", monitor.model
        raise InvalidArgumentError.of(
            "--monitor", rule, f"of {got.name} (fingerprint {got.fingerprint})", "Name another file."
        )
    longest = min((one.responses.max_new_tokens for one in monitor.traits if one.responses is not None), default=0)
    if longest < sampling.max_new_tokens:
        print(
            f"The monitor's ordinary answers had at most {longest} tokens. Answers of up to {sampling.max_new_tokens} "
            "exceed its thresholds more often.", file=sys.stderr,
        )  # fmt: skip


@dataclass
class Talk:
    """A chat under way."""

    model: HookedModel
    monitor: PersonaMonitor
    vectors: Mapping[str, PersonaVector]
    sampling: Sampling
    settings: Settings
    chat: Chat
    console: Console
    n_asked: int = 0

    @property
    def traits(self) -> list[str]:
        """The traits' names."""
        return list(self.vectors)

    def talk_in_terminal(self) -> int:
        """Read lines until /quit or the end; what is wrong is said, and the chat goes on."""
        with contextlib.suppress(ImportError):  # not on every system; lines are edited without it too
            importlib.import_module("readline")
        self.say(f"{self.monitor.model.name} is watched for {', '.join(self.traits)}. /help says what can be typed.")
        while True:
            try:
                line = input(_PROMPT)
            except EOFError:
                print()
                return 0
            except UnicodeDecodeError as error:
                self.say(str(_refuse_text(error)))
                continue
            except KeyboardInterrupt:
                self.say("\n(/quit or Ctrl-D ends the chat)")
                continue
            try:
                if not self.take(line):
                    return 0
            except (PersonaLensError, OSError) as error:
                self.say(make_printable(str(error)))
            except KeyboardInterrupt:
                self.say("(/quit or Ctrl-D ends the chat)")

    def talk_through_pipe(self, lines: Sequence[str], as_json: bool) -> int:
        """Take each line of standard input; whatever is wrong ends the command."""
        if as_json:
            self.console = Console(file=sys.stderr)
        for line in lines:
            if not line.startswith("/"):
                self.say(f"{_PROMPT}{make_printable(line)}")
            if not self.take(line):
                break
        if as_json:
            print_json(self.chat.to_json())
        return 0

    def take(self, line: str) -> bool:
        """Do what a line says; False where it ends the chat."""
        check_text(line)
        if not line.strip():
            return True
        if not line.lstrip().startswith("/"):
            self.answer(line)
            return True
        word, rest = split_command(line)
        check_word(word, self.traits)
        if word == "quit":
            return False
        if word == "help":
            self.say(write_help(self.traits))
        elif word == "drift":
            self.say(draw_drift(self.chat.turns, self.monitor.traits))
        elif word == "new":
            self.chat = replace(self.chat, turns=())
            self.say("(a new conversation)")
        elif word == "save":
            path = check_save_path(rest)
            self.chat.save(path)
            self.say(f"({path} holds {len(self.chat.turns)} turns)")
        else:
            self.settings = change_settings(self.settings, word, rest, self.traits, self.monitor.model.n_layers)
            self.say(f"({make_printable(describe_settings(self.settings))})")
        return True

    def answer(self, question: str) -> None:
        """Show an answer as it comes, and keep it; a broken-off one too, before what broke it off goes on its way."""
        settings, tokens, ended = self.settings, list[TokenReading](), "broken off"
        stopped: list[TokenReading] = []

        def alarm(reading: TokenReading) -> GoOn | Stop:
            if not settings.stops:
                return GoOn()
            stopped.append(reading)
            return Stop()

        messages = self.chat.list_messages(settings.system, question)
        try:
            stream = self.monitor.stream(
                self.model, messages, alarm=alarm, intervention=settings.make_intervention(self.vectors),
                sampling=replace(self.sampling, seed=self.sampling.seed + self.n_asked),
            )  # fmt: skip
        except ContextLengthError as error:
            raise ContextLengthError(f"{error} /new begins a new conversation.") from error
        self.n_asked += 1
        try:
            with closing(stream), _interrupts_noted() as check:
                self._show(stream, tokens, check)
            ended = "alarm" if stopped else "end"
        finally:
            self._keep(ChatTurn(
                question, "".join(one.text for one in tokens), settings.system, dict(settings.strengths),
                {trait: settings.layers[trait] for trait in settings.strengths}, tuple(tokens), ended,
            ))  # fmt: skip

    def _keep(self, turn: ChatTurn) -> None:
        self.chat = replace(self.chat, turns=(*self.chat.turns, turn))
        self.console.print()
        described = describe_turn(turn, self.monitor.traits, self.settings.coloured)
        self.console.print(Text(f"  [{described}]", style="dim"))

    def _show(self, stream: Iterator[TokenReading], tokens: list[TokenReading], check: Callable[[], None]) -> None:
        trait = next(one for one in self.monitor.traits if one.trait == self.settings.coloured)
        for token in stream:
            tokens.append(token)
            self.console.print(draw_token(token, trait), end="", soft_wrap=True)
            self.console.file.flush()
            check()

    def say(self, text: str) -> None:
        """Print a line in which nothing is markup."""
        self.console.print(Text(text))


@contextlib.contextmanager
def _interrupts_noted() -> Iterator[Callable[[], None]]:
    """Give what raises KeyboardInterrupt if Ctrl-C has been pressed; the second press raises it wherever it comes.

    Raised wherever the first one comes, it would get lost now and then: Python ignores what a destructor raises.
    """
    came = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal came
        if came:
            raise KeyboardInterrupt
        came = True

    def check() -> None:
        if came:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, note)
    try:
        yield check
        check()  # pressed since the last token
    finally:
        signal.signal(signal.SIGINT, before)
