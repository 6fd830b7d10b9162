"""``persona-lens demo``: every ready vector at work, beside the model as it is."""

from __future__ import annotations

import html
from dataclasses import dataclass

from rich.text import Text

from persona_lens.cli.arguments import Demo
from persona_lens.cli.choosing import EMBEDDED_SAMPLING, Way, find_way
from persona_lens.cli.terminal import colour_tokens, print_json, print_line, print_table
from persona_lens.evaluation.tracing import Trace, trace
from persona_lens.files import check_file_or_nothing, write_bytes_atomically
from persona_lens.interventions.from_vectors import steer
from persona_lens.models.engine.rollouts import RolloutRequest, sample_rollouts
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.hooks.intervention import NOTHING
from persona_lens.models.loading import load_model
from persona_lens.models.text.chat import Message
from persona_lens.traits.library import load_trait
from persona_lens.vectors.ready import list_ready_vectors

_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>persona-lens demo</title>
<style>body{{font:15px/1.5 system-ui,sans-serif;max-width:62em;margin:2em auto;padding:0 1em}}
h2{{margin-top:2em}}</style><h1>persona-lens demo</h1><p>{note}</p>{sections}</html>
"""
_NOTE = (
    "One question a trait, the first of its evaluation list, not chosen. Orange: a token that lies towards the trait "
    "where the unsteered model reads it, blue: away from it."
)


@dataclass(frozen=True)
class Shown:
    """One trait's two answers."""

    question: str
    way: Way
    unsteered: str
    steered: str

    def to_json(self) -> dict[str, object]:
        """Return it as JSON-able values."""
        return {
            "trait": self.way.vector.trait, "layer": self.way.layer, "coefficient": self.way.coefficient,
            "question": self.question, "unsteered": self.unsteered, "steered": self.steered,
            "auroc": self.way.vector.provenance.get("auroc", {}),
        }  # fmt: skip


def run(arguments: Demo) -> int:
    """Ask, show, write the page."""
    if not arguments.json:
        check_file_or_nothing(arguments.out, "--out")
        arguments.out.parent.mkdir(parents=True, exist_ok=True)  # before any model runs
    ways = [find_way(name) for name in arguments.trait or list_ready_vectors()]
    model = load_model()
    shown = answer(model, ways, arguments.seed)
    if arguments.json:
        print_json({"answers": [one.to_json() for one in shown]})
        return 0
    sections = []
    for one in shown:
        traces = [read(model, one, text) for text in (one.unsteered, one.steered)]
        print_table(
            f"\n{describe(one.way)}: {one.question}",
            ("unsteered", "steered"),
            [[colour(found, text, one.way.layer, traces) for found, text in
              zip(traces, (one.unsteered, one.steered), strict=True)]],
        )  # fmt: skip
        sections.append(write_section(one, traces))
    page = _PAGE.format(note=html.escape(_NOTE), sections="".join(sections))
    write_bytes_atomically(arguments.out, page.encode())
    print_line(f"{_NOTE} The same as a page: {arguments.out}. How sure it is on average: docs/results/evidence.md.")
    return 0


def answer(model: HookedModel, ways: list[Way], seed: int) -> list[Shown]:
    """Ask every trait's first evaluation question, unsteered and steered, all in one batch."""
    questions = [load_trait(way.vector.trait).evaluation_questions[0] for way in ways]
    requests = [
        RolloutRequest(question, (seed, index), intervention=done)
        for index, (question, way) in enumerate(zip(questions, ways, strict=True))
        for done in (NOTHING, steer(way.vector, layer=way.layer, coefficient=way.coefficient))
    ]
    texts = [one.response.strip() for one in sample_rollouts(model, requests, EMBEDDED_SAMPLING)]
    return [Shown(*parts) for parts in zip(questions, ways, texts[0::2], texts[1::2], strict=True)]


def describe(way: Way) -> str:
    """Say what is done."""
    away = "away from " if way.coefficient < 0 else ""
    return f"{away}{way.vector.trait} (layer {way.layer} × {way.coefficient:.2f})"


def read(model: HookedModel, shown: Shown, text: str) -> Trace | None:
    """Project an answer's tokens as the unsteered model reads them; None for an empty answer."""
    if not text:
        return None
    conversation = [Message(role="user", content=shown.question), Message(role="assistant", content=text)]
    return trace(model, conversation, shown.way.vector)


def colour(found: Trace | None, text: str, layer: int, traces: list[Trace | None]) -> Text:
    """Colour an answer's tokens; both answers share one scale, so that they can be compared."""
    if found is None:
        return Text("(empty)")
    both = [value for one in traces if one is not None for value in one.before[layer][one.read].tolist()]
    middle = sorted(both)[len(both) // 2]
    largest = max(abs(value - middle) for value in both) or 1.0
    tokens = [token for token, own in zip(found.tokens, found.read.tolist(), strict=True) if own]
    return colour_tokens(tokens, [(value - middle) / largest for value in found.before[layer][found.read].tolist()])


def write_section(shown: Shown, traces: list[Trace | None]) -> str:
    """Return a trait's part of the page; every text in it is escaped."""
    parts = [f"<h2>{html.escape(describe(shown.way))}</h2><p>{html.escape(shown.question)}</p>"]
    for name, found in zip(("unsteered", "steered"), traces, strict=True):
        coloured = "<p>(empty)</p>" if found is None else found.plot(layer=shown.way.layer).html
        parts.append(f"<h3>{name}</h3>{coloured}")
    return "".join(parts)
