"""A question answered token by token, with what is read at each; one at a time."""

from __future__ import annotations

import asyncio
import sys
import threading
import traceback
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from persona_lens.errors import (
    ContextLengthError,
    InvalidArgumentError,
    ModelBusyError,
    NonFiniteError,
    PersonaLensError,
)
from persona_lens.live.reading import split_text
from persona_lens.live.serving.chat import Chat, Exchange, ReadMessage
from persona_lens.live.serving.setup import Setup, write_finite
from persona_lens.models.engine.activations import project_residual_stream
from persona_lens.models.text.chat import Message, encode_turns
from persona_lens.monitoring.streaming import stream_tokens

MAX_CHARACTERS = 200_000
"""Of a question or a system prompt; far more than fits any context."""
MAX_COEFFICIENT = 1000.0
MAX_TEMPERATURE = 1000.0

Event = dict[str, Any]


@dataclass(frozen=True)
class Question:
    """What a page asks for, checked.

    Args:
        text: The question; empty to answer the last one again.
        system: System prompt of a chat that begins.
        coefficients: How often each trait's vector is added, by trait.
        max_new_tokens: Most tokens of the answer.
        temperature: Of sampling.
        seed: Of sampling.
    """

    text: str
    system: str
    coefficients: Mapping[str, float]
    max_new_tokens: int
    temperature: float
    seed: int

    @classmethod
    def of(cls, content: Any, setup: Setup) -> Question:
        """Read what a page sent.

        Raises:
            InvalidArgumentError: Not what a page of ours sends.
        """
        if not isinstance(content, Mapping):
            raise InvalidArgumentError.of("request", "be a JSON object", content)
        usual = setup.sampling
        kinds: dict[str, tuple[Any, Any]] = {
            "text": ("", str), "system": ("", str), "coefficients": ({}, Mapping),
            "max_new_tokens": (usual.max_new_tokens, int), "temperature": (usual.temperature, int | float),
            "seed": (usual.seed, int),
        }  # fmt: skip
        if strange := sorted(set(content) - set(kinds)):
            raise InvalidArgumentError.of("request", f"hold {', '.join(kinds)} alone", strange)
        values = {name: content.get(name, default) for name, (default, _) in kinds.items()}
        for name, (_, kind) in kinds.items():
            if not isinstance(values[name], kind) or isinstance(values[name], bool):
                raise InvalidArgumentError.of(name, "be what its name says", values[name])
        for name in ("text", "system"):
            if len(values[name]) > MAX_CHARACTERS:
                rule, got = f"have at most {MAX_CHARACTERS} characters", len(values[name])
                raise InvalidArgumentError.of(name, rule, got)
            if any("\ud800" <= one <= "\udfff" for one in values[name]):
                raise InvalidArgumentError.of(name, "be text without half surrogate pairs", values[name])
        for trait, coefficient in values["coefficients"].items():
            if trait not in setup.vectors:
                raise InvalidArgumentError.of("coefficients", f"be of the traits {list(setup.vectors)}", trait)
            is_number = isinstance(coefficient, int | float) and not isinstance(coefficient, bool)
            if not is_number or not abs(coefficient) <= MAX_COEFFICIENT:  # nor NaN
                rule = f"be numbers of at most {MAX_COEFFICIENT:g} in size"
                raise InvalidArgumentError.of("coefficients", rule, coefficient)
        values["coefficients"] = {trait: float(one) for trait, one in values["coefficients"].items()}
        if not abs(values["temperature"]) <= MAX_TEMPERATURE:  # nor NaN; JSON knows whole numbers that no float holds
            rule = f"be a number of at most {MAX_TEMPERATURE:g}"
            raise InvalidArgumentError.of("temperature", rule, values["temperature"])
        values["temperature"] = float(values["temperature"])
        return cls(**values)


@dataclass(frozen=True)
class Ending:
    """What ends an answer before its time.

    Args:
        stopped: It goes no further.
        gone: Nobody reads it any more, so that nobody has seen it whole.
    """

    stopped: threading.Event = field(default_factory=threading.Event)
    gone: threading.Event = field(default_factory=threading.Event)

    def leave(self) -> None:
        """Say that nobody reads any more."""
        self.gone.set()
        self.stopped.set()


def answer(setup: Setup, chat: Chat, question: Question, ending: Ending) -> Iterator[Event]:
    """Answer a question, and add both to the chat once the answer ends, or was stopped by who reads it.

    Args:
        setup: The model and the vectors.
        chat: Is continued; as it was if nothing was answered.
        question: What is asked.
        ending: Ends the answer before its next token.

    Yields:
        ``read``: the question's tokens, and what the monitor says before the answer; ``token``: one after the other;
        ``end``: why.

    Raises:
        InvalidArgumentError: Nothing to answer.
        PersonaLensError: Whatever keeps the model from answering.
    """
    earlier = Chat(chat.system, chat.exchanges)
    text = question.text
    if not text.strip():
        if not chat.exchanges:
            raise InvalidArgumentError.of("question", "hold some text", text)
        *before, last = chat.exchanges
        earlier, text = Chat(chat.system, tuple(before)), last.asked[-1].content
    elif not chat.exchanges:
        earlier = Chat(question.system.strip())
    sampling = replace(
        setup.sampling, max_new_tokens=question.max_new_tokens, temperature=question.temperature, seed=question.seed
    )
    messages = [*earlier.list_messages(), Message(role="user", content=text)]
    n_new = 2 if earlier.system and not earlier.exchanges else 1
    asked, readings = _read_prompt(setup, messages, n_new, sampling.max_tokens)
    yield {"kind": "read", "messages": [_show(one) for one in asked], **readings}
    texts: list[str] = []
    rows: list[Float[Tensor, "trait layer"]] = []
    intervention = setup.steer(question.coefficients)
    tokens = stream_tokens(
        setup.model, messages, setup.vectors, intervention=intervention, sampling=sampling,
        template_arguments=setup.template_arguments,
    )  # fmt: skip
    with closing(tokens):
        for token in tokens:
            texts.append(token.text)
            rows.append(token.projections)
            yield {"kind": "token", "text": token.text, "projections": _round(token.projections)}
            if ending.stopped.is_set():
                break
    if ending.gone.is_set():  # a page whose connection broke has taken the turn back: so does the chat
        return
    content = "".join(texts)
    if content.strip():
        said = ReadMessage("assistant", content, tuple(texts), torch.stack(rows), bool(intervention.steps))
        chat.system = earlier.system
        chat.exchanges = (*earlier.exchanges, Exchange(asked, said, dict(question.coefficients)))
    reason = "stopped" if ending.stopped.is_set() else "length" if len(texts) >= sampling.max_tokens else "finished"
    yield {"kind": "end", "reason": reason, "kept": bool(content.strip())}


class OneAtATime:
    """Answers on a thread of their own, one at a time; what they yield is awaited.

    Args:
        setup: The model and the vectors.
    """

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self._busy = threading.Lock()
        self._endings: dict[Chat, Ending] = {}
        self._thread: threading.Thread | None = None

    def stop(self, chat: Chat | None = None) -> None:
        """End a chat's answer before its next token; every chat's if none is named."""
        for one, ending in list(self._endings.items()):
            if chat is None or one is chat:
                ending.stopped.set()

    def join(self, timeout: float) -> None:
        """Wait for the end of the answer under way."""
        if self._thread is not None:
            self._thread.join(timeout)

    def begin(self, chat: Chat, question: Question) -> AsyncIterator[Event]:
        """Begin to answer; whoever no longer awaits what is returned ends the answer.

        Raises:
            ModelBusyError: Another answer is under way.
        """
        if not self._busy.acquire(blocking=False):
            got = "an answer under way, here or in another tab"
            raise ModelBusyError.of("model", "answer one question at a time", got, "Wait for it, or stop it.")
        loop, events, ending = asyncio.get_running_loop(), asyncio.Queue[Event | None](), Ending()
        self._endings[chat] = ending

        def put(event: Event | None) -> None:
            with suppress(RuntimeError):  # the loop is closed: the server ends
                loop.call_soon_threadsafe(events.put_nowait, event)

        def work() -> None:
            try:
                _put_all(lambda: answer(self.setup, chat, question, ending), put)
            finally:
                self._endings.pop(chat, None)
                self._busy.release()
                put(None)

        # One thread from first to last: torch's modes belong to threads, and so does the model while it is at work.
        self._thread = threading.Thread(target=work, name="persona-lens answer", daemon=True)
        self._thread.start()
        return _take_all(events, ending)


async def _take_all(events: asyncio.Queue[Event | None], ending: Ending) -> AsyncIterator[Event]:
    try:
        while (event := await events.get()) is not None:
            yield event
    finally:
        ending.leave()  # the page is gone, or all has come


def _put_all(work: Callable[[], Iterator[Event]], put: Callable[[Event], None]) -> None:
    """Pass on what comes; an error is the last of it, in words."""
    try:
        for event in work():
            put(event)
    except PersonaLensError as error:
        put({"kind": "error", "message": explain(error)})
    except Exception as error:  # a fault of ours or of memory: said on the page too
        traceback.print_exc(file=sys.stderr)
        message = f"The model failed: {type(error).__name__}. The terminal has the whole report."
        put({"kind": "error", "message": message})


def explain(error: PersonaLensError) -> str:
    """Say in words what to do about an error; how the library says it stands behind."""
    plain = {
        ContextLengthError: "The chat is too long for the model's context. Begin a new one, or ask for fewer tokens.",
        ModelBusyError: "The model is busy with something else. Wait until it is done, or stop it.",
        NonFiniteError: "The steering is too strong: the model's numbers overflow. Move the sliders nearer to 0.",
    }
    words = next((text for kind, text in plain.items() if isinstance(error, kind)), "")
    return f"{words} ({error})" if words else str(error)


def _read_prompt(
    setup: Setup, messages: list[Message], n_new: int, reserve: int
) -> tuple[tuple[ReadMessage, ...], dict[str, Any]]:
    """Read the newest messages' tokens, and the last prompt token, as the model takes them in unsteered."""
    model = setup.model
    encoded = encode_turns(
        model.tokenizer, messages, n_ctx=model.cfg.n_ctx, reserve=reserve, template_arguments=setup.template_arguments
    )
    watched = () if setup.monitor is None else setup.monitor.traits
    n_layers, n_traits = model.cfg.n_layers, len(setup.vectors)
    units = [vector.units for vector in setup.vectors.values()]
    units += [one.unit.expand(n_layers, -1) for one in watched]
    found = project_residual_stream(model, torch.tensor([list(encoded.tokens)]), torch.stack(units, dim=1))
    by_token = found[:, :, 0].permute(2, 1, 0).float().cpu()  # token, trait, layer
    for index, vector in enumerate(setup.vectors.values()):
        by_token[:, index, list(vector.absent)] = float("nan")
    texts = split_text(model.tokenizer, encoded.tokens)
    asked = []
    for turn in range(len(messages) - n_new, len(messages)):
        own = [index for index, one in enumerate(encoded.turns) if one == turn]
        message = messages[turn]
        asked.append(
            ReadMessage(
                message["role"], message["content"], tuple(texts[i] for i in own), by_token[own, :n_traits].clone()
            )
        )
    readings = {}
    for index, one in enumerate(watched):
        reading = one.read(1, float(by_token[-1, n_traits + index, one.layer]))
        expected = reading.expected_score
        readings[one.trait] = {
            "projection": reading.projection,
            "alert": reading.alert,
            "quantile": reading.quantile,
            "expected": None if expected is None else str(expected),
        }
    return tuple(asked), {"before": _round(by_token[-1, :n_traits]), "readings": readings}


def _show(message: ReadMessage) -> dict[str, Any]:
    tokens = [
        {"text": text, "projections": _round(row)} for text, row in zip(message.texts, message.projections, strict=True)
    ]
    return {"role": message.role, "content": message.content, "tokens": tokens}


def _round(projections: Float[Tensor, "trait layer"]) -> list[list[float | None]]:
    """Return numbers as the page shows them; the record keeps them whole."""
    return [write_finite(row) for row in projections.tolist()]
