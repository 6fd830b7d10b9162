"""A trait's direction by every estimator, from the same written answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from persona_lens.models.hooked_model import HookedModel
from persona_lens.reproduction.arguments import COMPARED_TRAITS
from persona_lens.traits.written import list_texts, load_written_examples
from persona_lens.vectors.cleaned import CleanedDifference, WithoutShared
from persona_lens.vectors.estimators import Estimator, FirstComponent, MeanDifference, find_vector
from persona_lens.vectors.pairs import ActivationPairs, read_pairs, read_response_means
from persona_lens.vectors.persona_vector import PersonaVector
from persona_lens.vectors.probes import LogisticProbe, ShrunkLDA


@dataclass(frozen=True, eq=False)
class WrittenReadings:
    """What a model makes of traits' written answers, read once.

    Args:
        pairs: By trait, overt against opposite answers of the training half.
        ordinary: By trait, its ordinary answers.
    """

    pairs: dict[str, ActivationPairs]
    ordinary: dict[str, Float[Tensor, "text layer d_model"]]

    def find_vectors(self, trait: str, n_removed: int) -> dict[str, PersonaVector]:
        """Find a trait's direction by every estimator; what is ordinary, and shared, is read from the compared traits.

        Args:
            trait: A trait with written examples.
            n_removed: Top components of ordinary text that one estimator removes.
        """
        others = [name for name in COMPARED_TRAITS if name != trait]
        estimators: dict[str, Estimator] = {
            "mean difference": MeanDifference(),
            "first component": FirstComponent(),
            "logistic probe": LogisticProbe(),
            "shrunk LDA": ShrunkLDA(),
            "without ordinary variation": CleanedDifference(
                torch.cat([self.ordinary[name] for name in others]), n_removed
            ),
            "without what traits share": WithoutShared(tuple(find_vector(self.pairs[name]) for name in others)),
        }
        return {name: find_vector(self.pairs[trait], estimator) for name, estimator in estimators.items()}


def read_written(model: HookedModel, traits: Sequence[str], n_examples: int | None = None) -> WrittenReadings:
    """Read the training half of the written answers of some traits, and of those that they are compared with.

    Args:
        model: The model, unsteered.
        traits: Traits with written examples.
        n_examples: Most examples of each trait; None takes all.
    """
    names = dict.fromkeys((*COMPARED_TRAITS, *traits))
    training = {name: load_written_examples(name, "training")[:n_examples] for name in names}
    return WrittenReadings(
        pairs={name: read_pairs(model, name, examples) for name, examples in training.items()},
        ordinary={
            name: read_response_means(
                model,
                [
                    [{"role": "user", "content": one.question}, {"role": "assistant", "content": ordinary}]
                    for one, ordinary in zip(examples, list_texts(examples, "ordinary"), strict=True)
                ],
            )
            for name, examples in training.items()
        },
    )
