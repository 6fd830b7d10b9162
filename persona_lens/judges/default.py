"""The judge that is taken where none is given: made once a model and trait, or ready for the embedded model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from weakref import WeakKeyDictionary

import torch

from persona_lens.checking import checked
from persona_lens.judges.coherent import CoherentJudge
from persona_lens.judges.embedding import EmbeddingFit, fit_embedding_judge
from persona_lens.judges.encoders import ResidualEncoder
from persona_lens.judges.judgement import IdentifiedJudge
from persona_lens.judges.likelihood import LikelihoodCalibration, LikelihoodJudge, calibrate_likelihood_judge
from persona_lens.judges.temperature_samples import sample_temperatures
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.loading import describe_model
from persona_lens.records import Record
from persona_lens.run import Run
from persona_lens.traits.library import load_trait
from persona_lens.traits.trait import Trait
from persona_lens.traits.written import WrittenExample, list_written_traits, load_written_examples, require_kinds

READING_DEPTH = 0.6
"""Of the layers, where a model's own reading of a text judges it."""

_N_PAIRS = 2
_READY = files("persona_lens") / "data" / "judges"


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Reading(EmbeddingFit):
    """The fit of a model's own reading, at a layer."""

    layer: int


@dataclass(frozen=True, eq=False, repr=False)
class JudgeParts(Record):
    """What a default judge rests on, without the model, which would then never be freed.

    Args:
        model: Fingerprint of the weights that it was made with, and their element type.
        n_pairs: Instruction pairs that the likelihood judge uses.
        calibration: The likelihood judge's.
        reading: None for a trait without written examples.
    """

    model: tuple[str, str]
    n_pairs: int
    calibration: LikelihoodCalibration
    reading: Reading | None


_known: WeakKeyDictionary[HookedModel, dict[tuple[str, str, str, str], JudgeParts]] = WeakKeyDictionary()


@checked
def default_judge(model: HookedModel, trait: Trait, run: Run = Run()) -> IdentifiedJudge:
    """Return the judge of a model and trait that is made with default settings when it is first asked for.

    For a bundled trait with written examples: an EmbeddingJudge over the model's own reading of a text, whose coherence
    is that of a LikelihoodJudge; for the embedded model in bfloat16 it comes with the package. For any other trait a
    LikelihoodJudge alone, which on the embedded model was valid for none of the traits that it was measured on:
    :func:`validate` it on examples of your own, or give another judge.

    Whoever needs it again gets the same one, whatever is to be judged. Coherence of responses that are much shorter or
    cooler than 48 tokens at temperature 1 is judged better by a judge calibrated on their like; see
    :func:`calibrate_likelihood_judge`.

    Args:
        model: HookedTransformer or TransformerBridge, unsteered.
        trait: The trait.
        run: Shows the calibration's progress.

    Raises:
        HooksPresentError: The model carries hooks.

    Example:
        >>> import persona_lens as pl
        >>> judge = pl.judges.default_judge(model, pl.load_trait("evil"))  # doctest: +SKIP
    """
    info = describe_model(model)
    known = _known.setdefault(model, {})
    key = (info.name, info.fingerprint, info.dtype, trait.fingerprint)  # the name tells template arguments
    if key not in known:
        known[key] = _load_ready((info.fingerprint, info.dtype), trait) or make_judge_parts(model, trait, run)
    found = known[key]
    likelihood = LikelihoodJudge(model, trait, found.n_pairs, found.calibration)
    if found.reading is None:
        return likelihood
    reader = found.reading.make_judge(trait.name, ResidualEncoder(model, found.reading.layer))
    return CoherentJudge(reader, likelihood)


def fit_reading_judge(
    model: HookedModel, trait: Trait, examples: Sequence[WrittenExample], run: Run = Run()
) -> IdentifiedJudge:
    """Return a judge like the default one of a trait with written examples, fitted on examples of one's own.

    Args:
        model: HookedTransformer or TransformerBridge, unsteered.
        trait: The trait.
        examples: What it is fitted on; measure it on others, with :func:`validate`.
        run: Shows the calibration's progress.

    Raises:
        InvalidArgumentError: Fewer than ten examples, or one that lacks a kind of answer.
        HooksPresentError: The model carries hooks.
    """
    require_kinds(examples)
    n_pairs = min(_N_PAIRS, len(trait.instruction_pairs))
    likelihood = calibrate_likelihood_judge(model, trait, n_pairs=n_pairs, run=run)
    reading = _fit_reading(model, trait.name, examples)
    return CoherentJudge(reading.make_judge(trait.name, ResidualEncoder(model, reading.layer)), likelihood)


def make_judge_parts(model: HookedModel, trait: Trait, run: Run = Run()) -> JudgeParts:
    """Calibrate and fit what :func:`default_judge` rests on.

    Raises:
        HooksPresentError: The model carries hooks.
    """
    info = describe_model(model)
    n_pairs = min(_N_PAIRS, len(trait.instruction_pairs))
    calibration = calibrate_likelihood_judge(model, trait, n_pairs=n_pairs, run=run).calibration
    examples = load_written_examples(trait.name, "training") if _is_written(trait) else ()
    reading = _fit_reading(model, trait.name, examples) if examples else None
    return JudgeParts((info.fingerprint, info.dtype), n_pairs, calibration, reading)


def _load_ready(model: tuple[str, str], trait: Trait) -> JudgeParts | None:
    """Return what comes with the package, if it is of this model and trait; fewer questions make no other trait."""
    path = _READY / f"{trait.name}.json"
    if not path.is_file() or not _is_written(trait):
        return None
    ready = JudgeParts.from_json(json.loads(path.read_text(encoding="utf-8")))
    bundled = load_trait(trait.name).instruction_pairs[: ready.n_pairs]
    return ready if ready.model == model and trait.instruction_pairs[: ready.n_pairs] == bundled else None


def _is_written(trait: Trait) -> bool:
    """Whether it is a bundled trait, however many of its questions are left, that has written examples."""
    return trait.name in list_written_traits() and trait.description == load_trait(trait.name).description


def _fit_reading(model: HookedModel, trait: str, examples: Sequence[WrittenExample]) -> Reading:
    samples = sample_temperatures(model, [one.question for one in examples])
    layer = round(READING_DEPTH * model.cfg.n_layers)
    judge = fit_embedding_judge(trait, examples, encoder=ResidualEncoder(model, layer), samples=samples)
    return Reading(torch.from_numpy(judge.weights).double(), judge.intercept, dict(judge.settings), layer=layer)
