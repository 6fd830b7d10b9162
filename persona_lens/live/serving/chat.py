"""A chat as the server keeps it: what was said, and what was read at each token."""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from persona_lens.errors import InvalidArgumentError
from persona_lens.live.conversation import Addition, ReadConversation, ReadVariant
from persona_lens.live.serving.setup import Setup
from persona_lens.models.loading import describe_model
from persona_lens.models.text.chat import Message

_UNUSUAL = 0.99  # the fraction of ordinary tokens below the threshold, as for read_conversation
_MAX_CHATS = 64


@dataclass(frozen=True, eq=False)
class ReadMessage:
    """A message with what was read at its tokens.

    Args:
        role: Whose turn it is.
        content: What is said.
        texts: What it grew by with each token.
        projections: Of each token.
        steered: Whether something was added at its tokens.
    """

    role: str
    content: str
    texts: tuple[str, ...]
    projections: Float[Tensor, "token trait layer"]
    steered: bool = False


@dataclass(frozen=True, eq=False)
class Exchange:
    """A question with its answer.

    Args:
        asked: The question, after the system prompt if it is the first.
        answer: The answer, as far as it came.
        coefficients: How often each trait's vector was added to the answer, by trait.
    """

    asked: tuple[ReadMessage, ...]
    answer: ReadMessage
    coefficients: Mapping[str, float]


@dataclass(eq=False)
class Chat:
    """A chat so far.

    Args:
        system: The system prompt; empty without.
        exchanges: Questions with their answers.
    """

    system: str = ""
    exchanges: tuple[Exchange, ...] = ()

    def list_messages(self) -> list[Message]:
        """Return what was said, the system prompt first."""
        messages = [Message(role="system", content=self.system)] if self.system else []
        for exchange in self.exchanges:
            messages += [Message(role=one.role, content=one.content) for one in _list_said(exchange)]
        return messages

    def make_record(self, setup: Setup) -> ReadConversation:
        """Return the chat as a record, one variant with what was added at each answer.

        Raises:
            InvalidArgumentError: Nothing was said yet.
        """
        if not self.exchanges:
            raise InvalidArgumentError.of("chat", "hold an answer", "an empty one", "Ask something first.")
        read = [one for exchange in self.exchanges for one in (*exchange.asked, exchange.answer)]
        additions = []
        turn = -1
        for exchange in self.exchanges:
            turn += len(exchange.asked) + 1
            for trait, coefficient in exchange.coefficients.items():
                if coefficient:
                    additions.append(Addition(turn, trait, setup.layers[trait], coefficient))
        unknown = torch.full((setup.model.cfg.n_layers,), float("nan"))
        known = [setup.ordinary.get(trait) for trait in setup.vectors]
        variant = ReadVariant(
            coefficient=0.0,
            texts=tuple(text for one in read for text in one.texts),
            turns=tuple(index for index, one in enumerate(read) for _ in one.texts),
            steered=torch.tensor([one.steered for one in read for _ in one.texts]),
            projections=torch.cat([one.projections for one in read]).permute(1, 2, 0).contiguous(),
            additions=tuple(additions),
        )
        return ReadConversation(
            model=describe_model(setup.model),
            traits=tuple(setup.vectors),
            roles=tuple(one.role for one in read),
            variants=(variant,),
            along="",
            layer=None,
            ordinary_mean=torch.stack([unknown if one is None else one.mean for one in known]),
            ordinary_std=torch.stack([unknown if one is None else one.std for one in known]),
            thresholds=torch.stack([unknown if one is None else one.quantile(_UNUSUAL) for one in known]),
        )


@dataclass(eq=False)
class Chats:
    """The chats of all open pages, each under a name that nobody guesses; the least recently used leave first."""

    kept: OrderedDict[str, Chat] = field(default_factory=OrderedDict)

    def open(self) -> str:
        """Begin a chat; return its name."""
        name = secrets.token_urlsafe(16)
        self.kept[name] = Chat()
        while len(self.kept) > _MAX_CHATS:
            self.kept.popitem(last=False)
        return name

    def find(self, name: str) -> Chat:
        """Return a chat.

        Raises:
            InvalidArgumentError: It is not kept, or not any more.
        """
        if name not in self.kept:
            hint = "The server was started anew, or many others were opened since. Begin a new chat."
            raise InvalidArgumentError.of("chat", "be one that is kept", "one that is not", hint)
        self.kept.move_to_end(name)
        return self.kept[name]


def _list_said(exchange: Exchange) -> list[ReadMessage]:
    return [*(one for one in exchange.asked if one.role != "system"), exchange.answer]
