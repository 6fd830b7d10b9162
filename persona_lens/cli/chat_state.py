"""A watched chat as values: what is set, what was said, what was read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from persona_lens.interventions.from_vectors import steer
from persona_lens.models.hooks.intervention import NOTHING, Intervention
from persona_lens.models.loading import ModelInfo
from persona_lens.models.text.chat import Message
from persona_lens.monitoring.alarms import TokenReading
from persona_lens.monitoring.readings import TraitMonitor
from persona_lens.records import Record
from persona_lens.vectors.persona_vector import PersonaVector


@dataclass(frozen=True)
class Settings:
    """How the next answer is given and shown.

    Args:
        coloured: The trait whose projections colour the tokens.
        system: System prompt; None leaves it to the chat template.
        strengths: By trait, how many of the vector's lengths are added; traits that are left alone are not in it.
        layers: By trait, the zero-based block at which it is steered.
        stops: Whether an alarm ends the answer.
    """

    coloured: str
    system: str | None
    strengths: Mapping[str, float]
    layers: Mapping[str, int]
    stops: bool = False

    def make_intervention(self, vectors: Mapping[str, PersonaVector]) -> Intervention:
        """Return what is done to the next answer."""
        done = NOTHING
        for trait, strength in self.strengths.items():
            done += steer(vectors[trait], layer=self.layers[trait], coefficient=strength)
        return done


@dataclass(frozen=True, eq=False)
class ChatTurn(Record):
    """A question and its answer, token by token.

    Args:
        question: The user's.
        answer: The model's text, a thought and all.
        system: The system prompt of the time.
        strengths: By trait, how strongly the answer was steered; empty where it was not.
        layers: By steered trait, the block at which.
        tokens: The answer's tokens with their readings.
        ended: Whether the answer came to an ``end`` of its own, was ended by an ``alarm``, or ``broken off``.
    """

    question: str
    answer: str
    system: str | None
    strengths: dict[str, float]
    layers: dict[str, int]
    tokens: tuple[TokenReading, ...]
    ended: str

    def mean(self, trait: str) -> float | None:
        """Return the mean projection of the answer; None for an empty one."""
        return self.tokens[-1].of(trait).mean if self.tokens else None


@dataclass(frozen=True, eq=False)
class Chat(Record):
    """A chat with its readings, as ``persona-lens chat`` saves it.

    Args:
        model: Who answered.
        traits: What the readings rest on.
        turns: In order.
    """

    model: ModelInfo
    traits: tuple[TraitMonitor, ...]
    turns: tuple[ChatTurn, ...] = ()

    def list_messages(self, system: str | None, question: str) -> list[Message]:
        """Return the conversation up to where the next answer is due. Turns without an answer are left out."""
        messages: list[Message] = [] if system is None else [Message(role="system", content=system)]
        for turn in self.turns:
            if turn.answer.strip():
                messages.append(Message(role="user", content=turn.question))
                messages.append(Message(role="assistant", content=turn.answer))
        return [*messages, Message(role="user", content=question)]
