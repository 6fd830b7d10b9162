"""``persona-lens chat``: a conversation whose tokens are read as they come, in a terminal or through a pipe."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace

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
from persona_lens.cli.choosing import Way, choose_sampling, find_way
from persona_lens.cli.terminal import make_console, print_json
from persona_lens.errors import ContextLengthError, InvalidArgumentError, NonFiniteError, PersonaLensError
from persona_lens.models.engine.requests import Sampling
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.loading import load_model
from persona_lens.monitoring.alarms import GoOn, Stop, TokenReading
from persona_lens.monitoring.monitor import PersonaMonitor
from persona_lens.vectors.persona_vector import PersonaVector
from persona_lens.vectors.ready import list_ready_vectors

_ROLLOUTS = 2
_PROMPT = "you> "


def run(arguments: ChatArguments) -> int:
    """Chat until the user ends it, or the pipe does."""
    if arguments.json and sys.stdin.isatty():
        raise InvalidArgumentError.of("--json", "be left out in a terminal", True, "Pipe questions in, or /save.")
    ways = list_ways(arguments)
    model = load_model(arguments.model)
    for way in ways.values():
        way.vector.check_model(model)
    like = choose_sampling(model)
    sampling = Sampling(arguments.max_new_tokens, like.temperature, seed=arguments.seed)
    monitor = open_monitor(arguments, model, ways, sampling)
    settings = Settings(
        coloured=next(iter(ways)), system=arguments.system, strengths={},
        layers={trait: way.layer for trait, way in ways.items()},
    )  # fmt: skip
    vectors = {trait: way.vector for trait, way in ways.items()}
    talk = Talk(model, monitor, vectors, sampling, settings, Chat(monitor.model, monitor.traits), make_console())
    if sys.stdin.isatty():
        return talk.talk_in_terminal()
    return talk.talk_through_pipe(arguments.json)


def list_ways(arguments: ChatArguments) -> dict[str, Way]:
    """Return each trait's vector with where it is steered and read."""
    names = arguments.trait or (() if arguments.vector else list_ready_vectors())
    found = [find_way(name, None, arguments.layer, 0.0) for name in names]
    found += [find_way(None, path, arguments.layer, 0.0) for path in arguments.vector]
    ways = {one.vector.trait: one for one in found}
    if len(ways) < len(found):
        raise InvalidArgumentError.of("--vector", "be of different traits", [one.vector.trait for one in found])
    return ways


def open_monitor(
    arguments: ChatArguments, model: HookedModel, ways: Mapping[str, Way], sampling: Sampling
) -> PersonaMonitor:
    """Load the monitor's file, or measure what is ordinary, and write it where a file was named."""
    path = arguments.monitor
    if path is not None and path.exists():
        monitor = PersonaMonitor.load(path)
        kept = {one.trait: one.layer for one in monitor.traits}
        if kept != {trait: way.layer for trait, way in ways.items()} or not monitor.watches_responses:
            rule = "watch responses for the traits and layers asked for"
            raise InvalidArgumentError.of("--monitor", rule, f"{path}, of {kept}", "Name another file.")
        return monitor
    print("Measuring what is ordinary for this model (--monitor FILE keeps it) ...", file=sys.stderr)
    responses = replace(sampling, max_new_tokens=min(64, sampling.max_new_tokens), rollouts=_ROLLOUTS)
    vectors = {trait: way.vector for trait, way in ways.items()}
    layers = {trait: way.layer for trait, way in ways.items()}
    monitor = PersonaMonitor.calibrate(model, vectors, layers, responses=responses, seed=arguments.seed)
    if path is not None:
        monitor.save(path)
    return monitor


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
            except KeyboardInterrupt:
                self.say("\n(/quit or Ctrl-D ends the chat)")
                continue
            try:
                if not self.take(line):
                    return 0
            except (PersonaLensError, OSError) as error:
                self.say(make_printable(str(error)))
            except KeyboardInterrupt:
                self.say("\n(broken off)")

    def talk_through_pipe(self, as_json: bool) -> int:
        """Take each line of standard input; whatever is wrong ends the command."""
        if as_json:
            self.console = Console(file=sys.stderr)
        lines = [line.rstrip("\n") for line in sys.stdin if line.strip()]
        if not lines:
            raise InvalidArgumentError.of("standard input", "hold a question on a line", "nothing")
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
        """Show an answer as it comes, and keep it, a broken-off one too."""
        settings, tokens, ended = self.settings, list[TokenReading](), "end"
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
            with closing(stream):
                self._show(stream, tokens)
        except KeyboardInterrupt:
            ended = "broken off"
        except NonFiniteError as error:
            ended = "broken off"
            self.say(f"\n{error}")
        turn = ChatTurn(
            question, "".join(one.text for one in tokens), settings.system, dict(settings.strengths),
            {trait: settings.layers[trait] for trait in settings.strengths}, tuple(tokens),
            "alarm" if stopped else ended,
        )  # fmt: skip
        self.chat = replace(self.chat, turns=(*self.chat.turns, turn))
        self.console.print()
        self.console.print(Text(f"  [{describe_turn(turn, self.monitor.traits, settings.coloured)}]", style="dim"))

    def _show(self, stream: Iterator[TokenReading], tokens: list[TokenReading]) -> None:
        trait = next(one for one in self.monitor.traits if one.trait == self.settings.coloured)
        for token in stream:
            tokens.append(token)
            self.console.print(draw_token(token, trait), end="", soft_wrap=True)
            self.console.file.flush()

    def say(self, text: str) -> None:
        """Print a line in which nothing is markup."""
        self.console.print(Text(text))
