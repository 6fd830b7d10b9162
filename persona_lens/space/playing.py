"""Does a model play its roles? What another model's sentence vectors say of the answers, without any persona vector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray

from persona_lens.checking import checked
from persona_lens.errors import InvalidArgumentError
from persona_lens.judges.encoders import TextEncoder
from persona_lens.records import Record, format_table
from persona_lens.space.answers import RoleAnswers
from persona_lens.statistics import Interval, bootstrap_auroc_by_group, bootstrap_mean
from persona_lens.traits.roles import ASSISTANT

_N_FOLDS = 4


@checked
@dataclass(frozen=True, eq=False, repr=False)
class RolePlaying(Record):
    """How surely a reader that saw neither prompt nor activations tells each role's answers from the assistant's.

    Args:
        encoder: Whose vectors of the answers were read.
        roles: Names.
        kinds: Their kinds, as authored.
        aurocs: Of a role's answers against the assistant's, on questions that the reader was not fitted on.
        named: Share of questions at which a role's answers are nearest to the same role's answers to other questions,
            among all roles.
        chance: Of ``named``.
    """

    encoder: str
    roles: tuple[str, ...]
    kinds: tuple[str, ...]
    aurocs: tuple[Interval, ...]
    named: tuple[Interval, ...]
    chance: float

    @property
    def played(self) -> tuple[str, ...]:
        """The roles whose answers are surely told from the assistant's: the AUROC's interval lies above one half."""
        return tuple(name for name, one in zip(self.roles, self.aurocs, strict=True) if one.low > 0.5)

    @property
    def share(self) -> float:
        """The share of roles that are played."""
        return len(self.played) / len(self.roles)

    def __repr__(self) -> str:
        return f"RolePlaying({len(self.played)} of {len(self.roles)} roles told from the assistant by {self.encoder})"

    def _repr_html_(self) -> str:
        rows = zip(self.roles, self.kinds, self.aurocs, self.named, strict=True)
        caption = f"Told from the assistant by {self.encoder}; named by chance {self.chance:.1%}"
        return format_table(caption, rows, ("role", "kind", "AUROC", "named"))


@checked
def measure_playing(answers: RoleAnswers, encoder: TextEncoder) -> RolePlaying:
    """Measure whether answers in a role can be told from the assistant's, and which role they are in.

    For each role, a logistic regression on the answers' vectors tells them from the assistant's, fitted without the
    questions that it is tried on. A role that cannot be told apart is one that the model does not play: where it lies
    in persona space says nothing.

    Args:
        answers: Of the assistant and of at least two other roles, to at least four questions.
        encoder: Makes the vectors: another model's, such as :func:`persona_lens.judges.load_sentence_encoder`.

    Returns:
        AUROCs, and how often a role is named right among all.

    Raises:
        InvalidArgumentError: No assistant, or too few roles or questions.

    Example:
        >>> import persona_lens as pl
        >>> encoder = pl.judges.load_sentence_encoder()  # doctest: +SKIP
        >>> pl.space.measure_playing(answers, encoder).share  # doctest: +SKIP
    """
    characters = answers.characters
    n = len(answers.questions)
    if n < _N_FOLDS or len(characters.roles) < 2:
        rule = f"hold at least two roles beside the assistant, and {_N_FOLDS} questions"
        raise InvalidArgumentError.of("answers", rule, f"{len(characters.roles)} and {n}")
    encoded = [_encode(encoder, texts) for texts in answers.texts]
    at_assistant = answers.roles.index(ASSISTANT)
    others = [one for index, one in enumerate(encoded) if index != at_assistant]
    return RolePlaying(
        encoder=encoder.name,
        roles=characters.roles,
        kinds=characters.kinds,
        aurocs=tuple(_tell_apart(one, encoded[at_assistant]) for one in others),
        named=tuple(bootstrap_mean(torch.from_numpy(row)) for row in _name_roles(others)),
        chance=1 / len(others),
    )


@dataclass(frozen=True, eq=False)
class _Encoded:
    """A role's answers as vectors, with the number of the question that each answers."""

    vectors: Float[ndarray, "answer d"]
    questions: ndarray


def _encode(encoder: TextEncoder, texts: Sequence[Sequence[str]]) -> _Encoded:
    questions = np.array([q for q, said in enumerate(texts) for _ in said])
    return _Encoded(encoder.encode([text for said in texts for text in said]).astype(np.float64), questions)


def _tell_apart(role: _Encoded, assistant: _Encoded) -> Interval:
    """Return the AUROC of a role's answers against the assistant's, each scored by a fit without its question."""
    from sklearn.linear_model import LogisticRegression

    scores = [np.zeros(len(one.questions)) for one in (role, assistant)]
    for fold in range(_N_FOLDS):
        held_out = [one.questions % _N_FOLDS == fold for one in (role, assistant)]
        rows = np.concatenate([one.vectors[~out] for one, out in zip((role, assistant), held_out, strict=True)])
        labels = np.repeat([1, 0], [int((~out).sum()) for out in held_out])
        regression: Any = LogisticRegression(C=10.0, class_weight="balanced", max_iter=1000)
        fitted = regression.fit(rows, labels)
        for score, one, out in zip(scores, (role, assistant), held_out, strict=True):
            if out.any():
                score[out] = fitted.decision_function(one.vectors[out])
    positive, negative = (torch.from_numpy(score) for score in scores)
    return bootstrap_auroc_by_group(positive, negative, role.questions.tolist(), assistant.questions.tolist())


def _name_roles(roles: Sequence[_Encoded]) -> Float[ndarray, "role question"]:
    """Return the share of each role's answers to each question that lie nearest to its own others' mean."""
    n = max(int(one.questions.max()) for one in roles) + 1
    hits = np.zeros((len(roles), n))
    for q in range(n):
        # What all roles say to a question is taken out; what they say to the others tells them apart.
        centers = np.stack([one.vectors[one.questions != q].mean(axis=0) for one in roles])
        centers -= centers.mean(axis=0)
        here = [one.vectors[one.questions == q] for one in roles]
        typical = np.concatenate(here).mean(axis=0)
        units = centers / np.maximum(np.linalg.norm(centers, axis=1, keepdims=True), 1e-12)
        for index, said in enumerate(here):
            hits[index, q] = float((((said - typical) @ units.T).argmax(axis=1) == index).mean())
    return hits
