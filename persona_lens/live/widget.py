"""A conversation in a notebook, live: what was not sampled yet is sampled when a slider or a question asks for it."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import cache, cached_property
from typing import Any

import torch

from persona_lens.checking import checked
from persona_lens.live.conversation import ReadConversation, ReadVariant
from persona_lens.live.payload import pack_conversation, pack_tokens, pack_variant
from persona_lens.live.reading import Reader, list_messages, read_messages
from persona_lens.live.static_page import read_module, write_static
from persona_lens.models.engine.requests import Sampling
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.text.chat import Message, build_messages
from persona_lens.models.text.templates import TemplateArguments
from persona_lens.monitoring.streaming import ReadToken, stream_tokens
from persona_lens.vectors.ordinary import OrdinaryProjections
from persona_lens.vectors.persona_vector import PersonaVector

_SENT_EVERY = 0.1  # seconds: a browser draws no faster
_STOPPED = "stopped"


@checked
def show(
    model: HookedModel,
    conversation: str | Sequence[Message],
    vectors: Mapping[str, PersonaVector],
    *,
    coefficients: Sequence[float] = (0.0, 1.0),
    along: str | None = None,
    layer: int | None = None,
    ordinary: Mapping[str, OrdinaryProjections] | None = None,
    sampling: Sampling = Sampling(max_new_tokens=48),
    template_arguments: TemplateArguments | None = None,
) -> LiveConversation:
    """Show a conversation in a notebook, each token coloured by its projection, steered and unsteered side by side.

    Sliders go over layers and coefficients; pointing at a token, or moving between tokens with the arrow keys, gives
    its numbers. While the kernel runs, a coefficient that has not been sampled is, and so is the answer to a new
    question, token by token. In a saved notebook and on a page what has been sampled stays to be looked at.

    Args:
        model: HookedTransformer or TransformerBridge.
        conversation: A question, or messages with ``role`` and ``content``; see :func:`read_conversation`.
        vectors: By trait.
        coefficients: Sampled at once.
        along: The trait of ``vectors`` to steer along; the first if left out.
        layer: Zero-based block index to steer at; if left out, the one that the vector was tried at, where its
            ``provenance`` says so.
        ordinary: What is ordinary for some of the traits, from :func:`persona_lens.measure_ordinary_projections`.
        sampling: How answers are drawn. Those asked for later are drawn one by one, with random numbers of their own.
        template_arguments: What the chat template reads besides the messages.

    Returns:
        What shows itself as the last line of a cell; ``.conversation`` is what has been read.

    Raises:
        ImportError: anywidget is missing; it comes with ``persona-lens[widget]``.
        InvalidArgumentError: As for :func:`read_conversation`.

    Example:
        >>> import persona_lens as pl
        >>> vectors = {name: pl.load_vector(name) for name in ("evil", "empathy")}
        >>> pl.live.show(pl.load_model(), "I failed my exam.", vectors, along="empathy")  # doctest: +SKIP
    """
    reader = Reader.of(model, vectors, along, layer, ordinary, sampling, template_arguments)
    messages = list_messages(conversation)
    _make_widget_class()  # before any model runs
    return LiveConversation(reader, messages, read_messages(reader, messages, coefficients))


@checked
class LiveConversation:
    """A conversation shown in a notebook, and the thread that samples what is asked for there.

    Args:
        reader: What it is read with.
        messages: The conversation, without the answers that are sampled.
        read: What has been read of it.
    """

    def __init__(self, reader: Reader, messages: Sequence[Message], read: ReadConversation) -> None:
        self._reader = reader
        self._messages = list(messages)
        self._read = read
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._is_kept = True  # what was sampled before a stop; not where something else was asked for

    @property
    def conversation(self) -> ReadConversation:
        """All that has been read so far."""
        return self._read

    def wait(self) -> None:
        """Return once what was asked for has been sampled."""
        if self._thread is not None:
            self._thread.join()

    def __repr__(self) -> str:
        return f"LiveConversation({self._read!r})"

    @cached_property
    def widget(self) -> Any:
        """The anywidget itself, for layouts of ipywidgets, and where outputs are kept apart from each other (Colab).

        It shows nothing once the kernel is gone.
        """
        widget = _make_widget_class()(key=uuid.uuid4().hex, payload=self._pack())
        widget.on_msg(self._handle)
        return widget

    def _repr_html_(self) -> str:
        # Not the widget's view: in a notebook that is opened again nothing is left of it but "model not found". The
        # page needs no kernel, and where there is one, the widget's model takes it over.
        return write_static(self._read, self.widget.key)

    def _pack(self) -> dict[str, Any]:
        can_steer = self._reader.layer is not None
        return {
            **pack_conversation(self._read),
            "along": self._reader.along if can_steer else "",
            "layer": self._reader.layer,
            "can_steer": can_steer,
        }

    # In the notebook's thread ---------------------------------------------------------------------------------------

    def _handle(self, widget: Any, content: Mapping[str, Any], buffers: object) -> None:
        """Do what the page asks for."""
        kind = content.get("type")
        self._interrupt(is_kept=kind == "stop")
        if kind == "sample":
            coefficient = float(content["coefficient"])
            self._start(lambda: self._extend([coefficient]))
        elif kind == "ask":
            opening = [message for message in self._messages if message["role"] == "system"]
            messages = [*opening, *build_messages(str(content["question"]))]
            coefficients = sorted({0.0, float(content["coefficient"])})
            self._start(lambda: self._begin(messages, coefficients))

    def _interrupt(self, *, is_kept: bool) -> None:
        self._is_kept = is_kept
        self._stop.set()
        self.wait()

    def _start(self, work: Callable[[], str]) -> None:
        self._stop = threading.Event()
        self._is_kept = True
        self._thread = threading.Thread(target=self._work, args=(work,), daemon=True)
        self._thread.start()

    # In a thread of its own -----------------------------------------------------------------------------------------

    def _work(self, work: Callable[[], str]) -> None:
        try:
            text = work()
        except Exception as error:  # shown where it was asked for: nobody would see it here
            self.widget.payload = self._pack()
            self.widget.send({"type": "error", "text": f"{type(error).__name__}: {error}"})
        else:
            self.widget.payload = self._pack()
            self.widget.send({"type": "end", "text": text})

    def _begin(self, messages: list[Message], coefficients: Sequence[float]) -> str:
        """Ask a new question, under each coefficient in turn."""
        first, *others = coefficients
        variant, text = self._sample(messages, first, known=())
        if variant is not None:
            self._messages = messages
            self._read = self._reader.gather([*(one["role"] for one in messages), "assistant"], [variant])
            if others and not self._stop.is_set():
                return self._extend(others)
        return text

    def _extend(self, coefficients: Sequence[float]) -> str:
        """Add variants of the conversation at hand."""
        text = ""
        for coefficient in coefficients:
            known = [one for one in self._read.variants if one.coefficient != coefficient]
            variant, text = self._sample(self._messages, coefficient, known=known)
            if variant is None:
                break
            variants = sorted([*known, variant], key=lambda one: one.coefficient)
            self._read = self._reader.gather(self._read.roles, variants)
        return text

    def _sample(
        self, messages: Sequence[Message], coefficient: float, known: Sequence[ReadVariant]
    ) -> tuple[ReadVariant | None, str]:
        """Read a conversation under a coefficient, sending its tokens as they come.

        Returns:
            The variant, None where something else was asked for meanwhile; and what to say of it.
        """
        began = time.perf_counter()
        reader = self._reader
        intervention = reader.steer(coefficient)
        encoded = reader.encode(messages)
        roles = [message["role"] for message in messages]
        start = reader.read(encoded, (), coefficient, intervention)
        is_question = roles[-1] != "assistant"
        head = {
            "type": "begin",
            "roles": roles + ["assistant"] * is_question,
            "known": [one.coefficient for one in known],
            **pack_variant(start),
        }
        self.widget.send(head)
        if not is_question:
            return start, f"Read at coefficient {coefficient:g}."
        tokens: list[ReadToken] = []
        n_sent, sent = 0, time.perf_counter()
        stream = stream_tokens(
            reader.model, messages, reader.vectors, intervention=intervention, sampling=reader.sampling,
            template_arguments=reader.template_arguments,
        )  # fmt: skip
        with closing(stream):
            for token in stream:
                tokens.append(token)
                if self._stop.is_set():
                    break
                if time.perf_counter() - sent >= _SENT_EVERY:
                    self._send_tokens(coefficient, tokens[n_sent:], len(roles))
                    n_sent, sent = len(tokens), time.perf_counter()
        self._send_tokens(coefficient, tokens[n_sent:], len(roles))
        if self._stop.is_set() and not self._is_kept:
            return None, _STOPPED
        took = time.perf_counter() - began
        what = "stopped after" if self._stop.is_set() else "sampled"
        text = f"Coefficient {coefficient:g}: {what} {len(tokens)} tokens in {took:.1f} s."
        return _join(start, tokens, len(roles)), text

    def _send_tokens(self, coefficient: float, tokens: Sequence[ReadToken], turn: int) -> None:
        if tokens:
            texts, turns, steered, projections = _gather_tokens(coefficient, tokens, turn)
            packed = pack_tokens(texts, turns, steered, projections)
            self.widget.send({"type": "tokens", "coefficient": coefficient, **packed})


def _gather_tokens(coefficient: float, tokens: Sequence[ReadToken], turn: int) -> tuple[Any, ...]:
    steered = torch.full((len(tokens),), coefficient != 0)
    projections = torch.stack([token.projections for token in tokens], dim=-1)
    return tuple(token.text for token in tokens), (turn,) * len(tokens), steered, projections


def _join(start: ReadVariant, tokens: Sequence[ReadToken], turn: int) -> ReadVariant:
    """Put a prompt and the response that was streamed after it together."""
    if not tokens:
        return start
    texts, turns, steered, projections = _gather_tokens(start.coefficient, tokens, turn)
    return ReadVariant(
        start.coefficient,
        start.texts + texts,
        start.turns + turns,
        torch.cat([start.steered, steered]),
        torch.cat([start.projections, projections], dim=-1),
    )


@cache
def _make_widget_class() -> Any:
    """Return the widget's class, made once; anywidget is an extra."""
    try:
        import anywidget
        import traitlets
    except ImportError as error:
        raise ImportError("A live view needs anywidget. Install it with: pip install 'persona-lens[widget]'") from error
    members = {
        "__doc__": "The drawing module in a notebook.",
        "_esm": read_module(),
        "key": traitlets.Unicode().tag(sync=True),
        "payload": traitlets.Dict().tag(sync=True),
    }
    return type("ConversationWidget", (anywidget.AnyWidget,), members)
