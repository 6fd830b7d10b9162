"""A vector's quality card, made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from persona_lens.checking import checked
from persona_lens.errors import InvalidArgumentError, ModelMismatchError
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.hooks.sites import check_layer
from persona_lens.tensors.directions import cosine
from persona_lens.vectors.quality.card import NullMargin, VectorQuality
from persona_lens.vectors.quality.confounds import correlate_length, measure_style
from persona_lens.vectors.quality.data import QualityData, read_quality_data
from persona_lens.vectors.quality.repeats import compare_repeats
from persona_lens.vectors.quality.separation import measure_separation
from persona_lens.vectors.quality.specificity import measure_specificity
from persona_lens.vectors.quality.stability import estimate_layers, measure_stability
from persona_lens.vectors.quality.unembedding import read_unembedding

if TYPE_CHECKING:  # a vector's type leads here when its quality is asked for
    from persona_lens.vectors.estimators import Estimator
    from persona_lens.vectors.persona_vector import PersonaVector


@checked
def assess_vector(
    vector: PersonaVector,
    model: HookedModel,
    data: QualityData | None = None,
    *,
    estimator: Estimator | None = None,
    layer: int | None = None,
    again: PersonaVector | Sequence[PersonaVector] | None = None,
    null: NullMargin | None = None,
    seed: int = 0,
) -> VectorQuality:
    """Measure all that can be measured of a vector without sampling: its quality card.

    Args:
        vector: Any vector of the model.
        model: HookedTransformer or TransformerBridge, unsteered.
        data: What it is measured on; None reads what comes with the package for the vector's trait, by
            :func:`read_quality_data`: then the stability is that of the vector from written answers, and of a sampled
            one it is left out.
        estimator: The way that the vector was found by; None is the mean difference.
        layer: Zero-based block index that the table is about; None takes the one that a bundled vector was tried at,
            else the middle one. Every layer is measured.
        again: The vector found anew: those of other seeds, :func:`persona_lens.vectors.extract_again`, or one from
            other written answers.
        null: What sampling found, at equal coherence: :func:`persona_lens.evaluation.measure_null_margin`.
        seed: Of halvings, draws and random directions.

    Raises:
        ModelMismatchError: A vector or pairs of another model.
        InvalidArgumentError: A vector with absent layers, or one found anew for another token position.
        LayerOutOfRangeError: The model has no such layer.
        HooksPresentError: The model carries hooks.

    Example:
        >>> import persona_lens as pl
        >>> model, vector = pl.load_model(), pl.load_vector("evil")  # doctest: +SKIP
        >>> pl.vectors.assess_vector(vector, model).list_concerns()  # doctest: +SKIP
    """
    vector.check_model(model)
    if vector.absent:
        got = f"{vector.trait!r} without one at layers {list(vector.absent)}"
        raise InvalidArgumentError.of("vector", "have a direction at every layer, for its card", got)
    shown = check_layer(_choose_layer(vector) if layer is None else layer, model.cfg.n_layers)
    repeats = None if again is None else compare_repeats(vector, again if isinstance(again, Sequence) else [again])
    if data is None:
        data = read_quality_data(model, vector.trait)
        if "examples" not in vector.provenance:  # the vector was not read from written answers
            data = QualityData(None, data.held_out, data.lengths, data.style, data.others)
    for one in data.list_pairs():
        if one.model.fingerprint != vector.model.fingerprint:
            rule = f"hold pairs of the vector's model, {vector.model.name}"
            raise ModelMismatchError.of("data", rule, f"{one.trait!r} of {one.model.name}")
    directions = vector.directions.float().cpu()
    halves = vector.split_half_cosine.get(vector.position)  # None where too few pairs were kept
    found = None if data.pairs is None else estimate_layers(data.pairs, estimator)
    return VectorQuality(
        trait=vector.trait,
        model=vector.model,
        vector=vector.digest,
        layer=shown,
        reproduced=() if found is None else tuple(cosine(directions, found).tolist()),
        stability=None if data.pairs is None else measure_stability(data.pairs, estimator, seed=seed),
        again=repeats,
        separation=None if data.held_out is None else measure_separation(directions, data.held_out),
        length=correlate_length(directions, data.held_out, data.lengths)
        if data.held_out is not None and data.lengths
        else (),
        style=None if data.style is None else measure_style(directions, data.style),
        specificity=measure_specificity(directions, data.others),
        unembedding=read_unembedding(model, directions, seed=seed),
        null=null,
        split_half=() if halves is None else tuple(halves.tolist()),
    )


def _choose_layer(vector: PersonaVector) -> int:
    setting = vector.provenance.get("setting")
    layer = setting.get("layer") if isinstance(setting, dict) else None
    return layer if isinstance(layer, int) else vector.model.n_layers // 2
