"""The judge that is taken where none is given: made once a model and trait."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from jaxtyping import Float
from numpy import ndarray

from persona_lens.judges.coherent import CoherentJudge
from persona_lens.judges.embedding import EmbeddingJudge, fit_embedding_judge
from persona_lens.judges.encoders import ResidualEncoder
from persona_lens.judges.judgement import IdentifiedJudge
from persona_lens.judges.likelihood import LikelihoodCalibration, LikelihoodJudge, calibrate_likelihood_judge
from persona_lens.judges.temperature_samples import sample_temperatures
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.loading import describe_model
from persona_lens.run import Run
from persona_lens.traits.library import load_trait
from persona_lens.traits.trait import Trait
from persona_lens.traits.written import list_written_traits, load_written_examples

READING_DEPTH = 0.6
"""Of the layers, where a model's own reading of a text judges it."""

_N_PAIRS = 2


@dataclass(frozen=True, eq=False)
class _Reading:
    """An EmbeddingJudge without its encoder."""

    layer: int
    weights: Float[ndarray, " d"]
    intercept: float
    settings: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class _Known:
    """What a model's default judge of a trait rests on, without the model, which would then never be freed."""

    n_pairs: int
    calibration: LikelihoodCalibration
    reading: _Reading | None


_known: WeakKeyDictionary[HookedModel, dict[tuple[str, str, str], _Known]] = WeakKeyDictionary()


def default_judge(model: HookedModel, trait: Trait, run: Run = Run()) -> IdentifiedJudge:
    """Return the judge of a model and trait that is made with default settings when it is first asked for.

    For a bundled trait with written examples: an EmbeddingJudge over the model's own reading of a text, whose coherence
    is that of a LikelihoodJudge. For any other trait a LikelihoodJudge alone, which on the embedded model was valid for
    none of the traits that it was measured on: :func:`validate` it on examples of your own, or give another judge.

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
    key = (info.fingerprint, info.dtype, trait.fingerprint)
    if key not in known:
        n_pairs = min(_N_PAIRS, len(trait.instruction_pairs))
        calibration = calibrate_likelihood_judge(model, trait, n_pairs=n_pairs, run=run).calibration
        known[key] = _Known(n_pairs, calibration, _fit_reading(model, trait.name) if _is_written(trait) else None)
    found = known[key]
    likelihood = LikelihoodJudge(model, trait, found.n_pairs, found.calibration)
    if found.reading is None:
        return likelihood
    encoder = ResidualEncoder(model, found.reading.layer)
    reading = found.reading
    return CoherentJudge(
        EmbeddingJudge(trait.name, encoder, reading.weights, reading.intercept, reading.settings), likelihood
    )


def _is_written(trait: Trait) -> bool:
    """Whether it is a bundled trait, however many of its questions are left, that has written examples."""
    return trait.name in list_written_traits() and trait.description == load_trait(trait.name).description


def _fit_reading(model: HookedModel, trait: str) -> _Reading:
    examples = load_written_examples(trait, "training")
    samples = sample_temperatures(model, [one.question for one in examples])
    layer = round(READING_DEPTH * model.cfg.n_layers)
    judge = fit_embedding_judge(trait, examples, encoder=ResidualEncoder(model, layer), samples=samples)
    return _Reading(layer, judge.weights, judge.intercept, judge.settings)
