"""A small autoencoder for the scripts: trained on the model's own answers to questions that measure nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.resources import files

import torch

from persona_lens.models.engine.requests import Sampling
from persona_lens.models.engine.rollouts import RolloutRequest, sample_rollouts
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.text.chat import encode_conversation, encode_prompt
from persona_lens.models.text.spans import TokenSpans
from persona_lens.run import Run
from persona_lens.storage import Shard
from persona_lens.streams import Stream
from persona_lens.traits.everyday import load_ordinary_questions
from persona_lens.traits.library import list_traits, load_trait
from persona_lens.traits.written import list_written_traits, load_written_examples
from persona_lens.vectors.contents.autoencoder_training import AutoencoderSettings, train_autoencoder
from persona_lens.vectors.contents.autoencoders import SparseAutoencoder
from persona_lens.vectors.contents.reconstruction import read_response_tokens

_DATA = files("persona_lens") / "data"
_ANSWERS = ("right", "plausible", "absurd")


@dataclass(frozen=True, eq=False)
class TrainedAutoencoder:
    """An autoencoder, with the texts that it is to be judged by.

    Args:
        autoencoder: Trained on other texts.
        held_out: The model's own answers to the everyday questions.
        n_tokens: Tokens that it was trained on.
        n_texts: Texts likewise.
    """

    autoencoder: SparseAutoencoder
    held_out: tuple[TokenSpans, ...]
    n_tokens: int
    n_texts: int


def list_training_questions() -> tuple[str, ...]:
    """Return the bundled questions that no trait, judge or measurement of these scripts asks."""
    measured = set(load_ordinary_questions())
    for trait in map(load_trait, list_traits()):
        measured |= {*trait.evaluation_questions, *trait.extraction_questions}
    for name in list_written_traits():
        measured |= {one.question for half in ("training", "judging") for one in load_written_examples(name, half)}
    rows = [row for name in ("facts", "opinions", "capability_items") for row in _read(name)]
    return tuple(dict.fromkeys(row["question"] for row in rows if row["question"] not in measured))


def prepare_autoencoder(
    model: HookedModel, layer: int, settings: AutoencoderSettings, sampling: Sampling, n_questions: int | None, run: Run
) -> TrainedAutoencoder:
    """Sample answers, read them after a layer, and train an autoencoder on all their tokens; or take it from a run.

    Args:
        model: The model, unsteered.
        layer: Zero-based block index.
        settings: Of the training.
        sampling: How answers are drawn.
        n_questions: Most questions of training and of the held-out half; None takes all.
        run: Keeps answers and weights.
    """
    asked = list_training_questions()[:n_questions]
    known = set(asked)
    written = [(row["question"], row[kind]) for row in _read("facts") if row["question"] in known for kind in _ANSWERS]
    parts = {"work": "autoencoder", "layer": layer, "sampling": sampling.to_json(), "n_questions": n_questions}
    kept = run.part(parts)
    spans = [
        *_load_answers(model, asked, sampling, kept, "training"),
        *(
            encode_conversation(
                model.tokenizer, [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            )
            for question, answer in written
        ),
    ]
    held_out = _load_answers(model, load_ordinary_questions()[:n_questions], sampling, kept, "held out")

    def train() -> Shard:
        read = read_response_tokens(model, spans, layer)
        found = train_autoencoder(read, layer, settings)
        assert found.k is not None
        weights = {name: getattr(found, name) for name in ("encoder", "encoder_bias", "decoder", "decoder_bias")}
        return Shard(weights, {"n_tokens": len(read), "source": found.source})

    shard = run.part({**parts, "settings": settings.to_json()}).load_or_compute("autoencoder", train)
    weights = shard.tensors
    autoencoder = SparseAutoencoder(
        encoder=weights["encoder"],
        encoder_bias=weights["encoder_bias"],
        decoder=weights["decoder"],
        decoder_bias=weights["decoder_bias"],
        activation="topk",
        k=settings.k,
        layer=layer,
        source=shard.records["source"],
    )
    return TrainedAutoencoder(autoencoder, tuple(held_out), shard.records["n_tokens"], len(spans))


def _load_answers(
    model: HookedModel, questions: Sequence[str], sampling: Sampling, run: Run, name: str
) -> list[TokenSpans]:
    """Return answers of two tokens or more, sampled once."""

    def compute() -> Shard:
        # "training" and "held out" have eight letters each: both share random numbers, on different questions.
        requests = [
            RolloutRequest(question, (sampling.seed, Stream.AUTOENCODER, len(name), q))
            for q, question in enumerate(questions)
        ]
        found = sample_rollouts(model, requests, replace(sampling, rollouts=1))
        return Shard({str(index): torch.tensor(one.tokens) for index, one in enumerate(found)})

    kept = run.load_or_compute(f"answers {name}".replace(" ", "-"), compute).tensors
    spans = []
    for index, question in enumerate(questions):
        tokens = kept[str(index)].tolist()
        if len(tokens) >= 2:
            prompt = encode_prompt(model.tokenizer, [{"role": "user", "content": question}]).tokens
            spans.append(TokenSpans.join(prompt, tokens))
    return spans


def _read(name: str) -> list[dict[str, str]]:
    lines = (_DATA / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]
