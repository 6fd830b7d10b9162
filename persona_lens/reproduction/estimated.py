"""A trait's direction by every estimator, from the same written answers."""

from __future__ import annotations

from persona_lens.models.hooked_model import HookedModel
from persona_lens.traits.written import list_written_traits, load_written_examples
from persona_lens.vectors.cleaned import CleanedDifference, WithoutShared
from persona_lens.vectors.estimators import Estimator, FirstComponent, MeanDifference, find_vector
from persona_lens.vectors.pairs import read_pairs, read_response_means
from persona_lens.vectors.persona_vector import PersonaVector
from persona_lens.vectors.probes import LogisticProbe, ShrunkLDA


def find_written_vectors(
    model: HookedModel, trait: str, n_removed: int, n_examples: int | None = None
) -> dict[str, PersonaVector]:
    """Find a trait's direction by every estimator, from the training half of its written answers.

    What is ordinary, and what traits share, is read from the other traits' written answers.

    Args:
        model: The model, unsteered.
        trait: A trait with written examples.
        n_removed: Top components of ordinary text that one estimator removes.
        n_examples: Most examples of each trait; None takes all.
    """
    training = {name: load_written_examples(name, "training")[:n_examples] for name in list_written_traits()}
    pairs = read_pairs(model, trait, training.pop(trait))
    others = tuple(find_vector(read_pairs(model, name, examples)) for name, examples in training.items())
    ordinary = read_response_means(
        model,
        [
            [{"role": "user", "content": one.question}, {"role": "assistant", "content": one.ordinary}]
            for examples in training.values()
            for one in examples
        ],
    )
    estimators: dict[str, Estimator] = {
        "mean difference": MeanDifference(),
        "first component": FirstComponent(),
        "logistic probe": LogisticProbe(),
        "shrunk LDA": ShrunkLDA(),
        "without ordinary variation": CleanedDifference(ordinary, n_removed),
        "without what traits share": WithoutShared(others),
    }
    return {name: find_vector(pairs, estimator) for name, estimator in estimators.items()}
