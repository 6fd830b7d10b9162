"""The judge that is taken where none is given: calibrated once a model and trait."""

from __future__ import annotations

from weakref import WeakKeyDictionary

from persona_lens.judges.likelihood import LikelihoodCalibration, LikelihoodJudge, calibrate_likelihood_judge
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.loading import describe_model
from persona_lens.run import Run
from persona_lens.traits.trait import Trait

_N_PAIRS = 2
# The calibrations alone: a judge holds its model, which would then never be freed.
_calibrations: WeakKeyDictionary[HookedModel, dict[tuple[str, str, str], LikelihoodCalibration]] = WeakKeyDictionary()


def default_judge(model: HookedModel, trait: Trait, run: Run = Run()) -> LikelihoodJudge:
    """Return the LikelihoodJudge of a model and trait, calibrated with default settings when it is first asked for.

    Whoever needs it again gets the same one, whatever is to be judged. Responses that are much shorter or cooler than
    48 tokens at temperature 1 are judged better by a judge calibrated on their like; see
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
    n_pairs = min(_N_PAIRS, len(trait.instruction_pairs))
    info = describe_model(model)
    known = _calibrations.setdefault(model, {})
    key = (info.fingerprint, info.dtype, trait.fingerprint)
    if key not in known:
        known[key] = calibrate_likelihood_judge(model, trait, n_pairs=n_pairs, run=run).calibration
    return LikelihoodJudge(model, trait, n_pairs, known[key])
