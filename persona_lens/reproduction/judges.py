"""The judges that results rest on: each measured before it is believed, and kept, so that every script has the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.resources import files

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray

from persona_lens.judges.coherent import CoherentJudge
from persona_lens.judges.default import READING_DEPTH
from persona_lens.judges.embedding import EmbeddingFit, EmbeddingJudge, fit_embedding_judge
from persona_lens.judges.encoders import ResidualEncoder, TextEncoder, load_sentence_encoder
from persona_lens.judges.judgement import IdentifiedJudge
from persona_lens.judges.likelihood import LikelihoodCalibration, LikelihoodJudge, calibrate_likelihood_judge
from persona_lens.judges.temperature_samples import sample_temperatures
from persona_lens.judges.validation import JudgeValidation, TemperatureSamples, ValidatedJudge, validate
from persona_lens.models.engine.requests import Sampling
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.loading import describe_model
from persona_lens.records import Record
from persona_lens.run import Run
from persona_lens.storage import Shard
from persona_lens.traits.trait import Trait
from persona_lens.traits.written import Half, WrittenExample, list_written_traits, load_written_examples

READY = files("persona_lens") / "data" / "judges" / "measured"
"""Where :class:`ReadyJudges` come with the package, written by experiments/ready_judges.py."""


@dataclass(frozen=True, eq=False)
class Judges:
    """A trait's judges, each with what validation found of it.

    Args:
        reader: The model's own reading of a text. It shares its model with what it judges, so it chooses.
        sentences: Sentence vectors of another model, which share neither model nor prompt with anything: it confirms.
        likelihood: The likelihood judge, which says how coherent a text is too. For a trait without written examples,
            on which the others would be fitted, it is all three.
    """

    reader: IdentifiedJudge
    sentences: IdentifiedJudge
    likelihood: IdentifiedJudge

    @property
    def all(self) -> tuple[IdentifiedJudge, ...]:
        """Each once."""
        return tuple(dict.fromkeys((self.reader, self.sentences, self.likelihood)))

    @property
    def validations(self) -> tuple[JudgeValidation, ...]:
        """What was found of those that were measured."""
        return tuple(judge.validation for judge in self.all if isinstance(judge, ValidatedJudge))

    @property
    def choosing(self) -> IdentifiedJudge:
        """The one that chooses, which says how coherent a text is too."""
        return self._with_coherence(self.reader)

    @property
    def confirming(self) -> tuple[IdentifiedJudge, ...]:
        """Those whose word a claim needs: the one that chooses and the other model's, or the only one."""
        return tuple(dict.fromkeys((self.choosing, self._with_coherence(self.sentences))))

    def _with_coherence(self, judge: IdentifiedJudge) -> IdentifiedJudge:
        return judge if judge is self.likelihood else CoherentJudge(judge, self.likelihood)


@dataclass(frozen=True, eq=False)
class _Measured:
    """What a judge is fitted on and measured with."""

    examples: tuple[WrittenExample, ...]
    samples: TemperatureSamples

    def describe(self) -> str:
        """Return a digest that changes with any text."""
        texts = json.dumps([*map(asdict, self.examples), asdict(self.samples)], sort_keys=True)
        return hashlib.sha256(texts.encode()).hexdigest()[:16]


@dataclass(frozen=True, eq=False, repr=False)
class ReadyJudges(Record):
    """A trait's judges without their models, as they come with the package for the embedded one.

    Args:
        made_from: A digest of all that they depend on.
        calibration: The likelihood judge's.
        reader: The fit of the model's own reading.
        sentences: The fit of another model's sentence vectors.
        validations: What was found of each, in the order of :attr:`Judges.all`.
    """

    made_from: str
    calibration: LikelihoodCalibration
    reader: EmbeddingFit
    sentences: EmbeddingFit
    validations: tuple[JudgeValidation, JudgeValidation, JudgeValidation]


def prepare_judges(
    model: HookedModel, trait: Trait, sampling: Sampling, run: Run, *, n_examples: int | None = None
) -> Judges:
    """Make a trait's judges and measure each, or take them from an earlier script's run or from the package.

    A trait without written examples has the likelihood judge alone, which nothing then says may be believed.

    Args:
        model: The model, unsteered.
        trait: The trait.
        sampling: How the responses are drawn that will be judged.
        run: Keeps what is made: ``arguments.share(model)``.
        n_examples: Most examples of each half; None takes all.

    Raises:
        HooksPresentError: The model carries hooks.
        ImportError: The sentence encoder is not installed: the extra ``embeddings``.
    """
    if trait.name not in list_written_traits():
        likelihood = calibrate_likelihood_judge(model, trait, n_pairs=1, sampling=sampling, run=run)
        return Judges(likelihood, likelihood, likelihood)
    encoders = load_encoders(model)
    found = _read_ready(trait.name, _describe(model, trait, sampling, encoders, n_examples))
    if found is None:
        found = make_judges(model, trait, sampling, run, encoders, n_examples=n_examples)
    fits = (found.reader, found.sentences)
    judges: list[IdentifiedJudge] = [fit.make_judge(trait.name, one) for one, fit in zip(encoders, fits, strict=True)]
    judges.append(LikelihoodJudge(model, trait, 1, found.calibration))
    return Judges(*(ValidatedJudge(judge, one) for judge, one in zip(judges, found.validations, strict=True)))


def prepare_sentence_judge(
    model: HookedModel, trait: Trait, sampling: Sampling, run: Run, *, n_examples: int | None = None
) -> IdentifiedJudge:
    """Make and measure the judge of :func:`prepare_judges` that reads sentence vectors alone: a third of the work.

    For a trait with written examples; the arguments and what is kept are those of :func:`prepare_judges`.
    """
    encoders = load_encoders(model)
    found = _read_ready(trait.name, _describe(model, trait, sampling, encoders, n_examples))
    encoder = encoders[1]
    if found is not None:
        return ValidatedJudge(found.sentences.make_judge(trait.name, encoder), found.validations[1])
    fitted_on = _load_half(model, trait.name, "training", sampling, run, n_examples)
    measured_on = _load_half(model, trait.name, "judging", sampling, run, n_examples)
    judge = _fit(trait.name, fitted_on, encoder, run).make_judge(trait.name, encoder)
    return ValidatedJudge(judge, _validate(judge, trait.name, measured_on, run))


Memory = dict[str, dict[str, ndarray]]
"""By encoder's identity and text, its vector."""


@dataclass(frozen=True, eq=False)
class _RememberingEncoder:
    """Encodes a text once, however many traits' judges read it."""

    encoder: TextEncoder
    known: dict[str, ndarray]

    @property
    def name(self) -> str:
        """That of the encoder."""
        return self.encoder.name

    @property
    def identity(self) -> str:
        """That of the encoder."""
        return self.encoder.identity

    def encode(self, texts: Sequence[str]) -> Float[ndarray, "text d"]:
        """Return one vector a text."""
        new = list(dict.fromkeys(text for text in texts if text not in self.known))
        if new:
            self.known.update(zip(new, self.encoder.encode(new), strict=True))
        return np.stack([self.known[text] for text in texts])


def remember(judges: Judges, memory: Memory) -> Judges:
    """Let the two judges that encode texts remember what others of the same encoder have encoded."""
    reader, sentences = (remember_one(judge, memory) for judge in (judges.reader, judges.sentences))
    return Judges(reader, sentences, judges.likelihood)


def remember_one(judge: IdentifiedJudge, memory: Memory) -> IdentifiedJudge:
    """Let a judge that encodes texts remember what others of the same encoder have encoded."""
    if not isinstance(judge, ValidatedJudge) or not isinstance(judge.judge, EmbeddingJudge):
        return judge
    encoder = judge.judge.encoder
    remembering = _RememberingEncoder(encoder, memory.setdefault(encoder.identity, {}))
    return replace(judge, judge=replace(judge.judge, encoder=remembering))


def load_encoders(model: HookedModel) -> tuple[TextEncoder, TextEncoder]:
    """Return the model's own reading, and another model's sentence vectors."""
    return ResidualEncoder(model, round(READING_DEPTH * model.cfg.n_layers)), load_sentence_encoder()


def make_judges(
    model: HookedModel,
    trait: Trait,
    sampling: Sampling,
    run: Run,
    encoders: Sequence[TextEncoder],
    *,
    n_examples: int | None = None,
) -> ReadyJudges:
    """Calibrate, fit and measure a trait's judges, or take them from an earlier script's run.

    Args:
        model: The model, unsteered.
        trait: A trait with written examples.
        sampling: How the responses are drawn that will be judged.
        run: Keeps what is made.
        encoders: Those of :func:`load_encoders`.
        n_examples: Most examples of each half; None takes all.
    """
    likelihood = calibrate_likelihood_judge(model, trait, n_pairs=1, sampling=sampling, run=run)
    fitted_on = _load_half(model, trait.name, "training", sampling, run, n_examples)
    measured_on = _load_half(model, trait.name, "judging", sampling, run, n_examples)
    reader, sentences = (_fit(trait.name, fitted_on, encoder, run) for encoder in encoders)
    fits = zip(encoders, (reader, sentences), strict=True)
    judges: list[IdentifiedJudge] = [*(fit.make_judge(trait.name, one) for one, fit in fits), likelihood]
    first, second, third = (_validate(judge, trait.name, measured_on, run) for judge in judges)
    return ReadyJudges(
        made_from=_describe(model, trait, sampling, encoders, n_examples),
        calibration=likelihood.calibration,
        reader=reader,
        sentences=sentences,
        validations=(first, second, third),
    )


def _describe(
    model: HookedModel, trait: Trait, sampling: Sampling, encoders: Sequence[TextEncoder], n_examples: int | None
) -> str:
    """Return a digest of all that a trait's judges depend on."""
    halves = (load_written_examples(trait.name, half)[:n_examples] for half in ("training", "judging"))
    parts = [
        describe_model(model).to_json(), trait.positive_system_prompts[0], trait.negative_system_prompts[0],
        list(trait.extraction_questions), sampling.to_json(), [one.identity for one in encoders],
        [[asdict(one) for one in half] for half in halves],
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _read_ready(trait: str, made_from: str) -> ReadyJudges | None:
    """Return the judges that come with the package, if they were made from the same."""
    path = READY / f"{trait}.json"
    if not path.is_file():
        return None
    ready = ReadyJudges.from_json(json.loads(path.read_text(encoding="utf-8")))
    return ready if ready.made_from == made_from else None


def _load_half(
    model: HookedModel, trait: str, half: Half, sampling: Sampling, run: Run, n_examples: int | None
) -> _Measured:
    examples = load_written_examples(trait, half)[:n_examples]
    questions = [one.question for one in examples]
    part = run.part({"work": "temperatures", "questions": questions, "sampling": sampling.to_json()})
    samples = part.load_or_measure(
        "samples", TemperatureSamples, lambda: sample_temperatures(model, questions, sampling=sampling)
    )
    return _Measured(examples, samples)


def _fit(trait: str, fitted_on: _Measured, encoder: TextEncoder, run: Run) -> EmbeddingFit:
    def compute() -> Shard:
        judge = fit_embedding_judge(trait, fitted_on.examples, encoder=encoder, samples=fitted_on.samples)
        records = {"intercept": judge.intercept, "settings": dict(judge.settings)}
        return Shard({"weights": torch.from_numpy(judge.weights)}, records)

    part = run.part({"work": "embedding judge", "encoder": encoder.identity, "fitted on": fitted_on.describe()})
    kept = part.load_or_compute("judge", compute)
    return EmbeddingFit(kept.tensors["weights"], kept.records["intercept"], kept.records["settings"])


def _validate(judge: IdentifiedJudge, trait: str, measured_on: _Measured, run: Run) -> JudgeValidation:
    part = run.part({"work": "validation", "judge": judge.identity, "measured on": measured_on.describe()})
    return part.load_or_measure(
        "validation", JudgeValidation, lambda: validate(judge, trait, measured_on.examples, measured_on.samples)
    )
