"""Does a model know, before it answers, that a question is about something invented?

    python experiments/known_entities.py                              # minutes on two cores

Questions about real and invented things in the same words, whose names are of one length in tokens. The activation of
the last prompt token, before the answer, is projected on directions found on four categories (of countries, cities,
people, animals and books) and tried on the fifth, at each layer and at one chosen within the four. Rare tokens are
surprising, and invented names are rare, so the control is what the name alone says: its length, its tokens, its
log-likelihood, and all of these in a logistic regression that is held out in the same way. The persona vector for
hallucination is tried as it is, at the layer that it was tried at for steering.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from results.known_entities import EstimatorSeparation, KnownEntities, SurfacePredictor, VectorSeparation
from torch import Tensor

import persona_lens as pl
from persona_lens.models import HookedModel, TokenSpans, encode_prompt
from persona_lens.models.engine.likelihood import mean_log_likelihoods
from persona_lens.models.loading import EMBEDDED_MODEL
from persona_lens.models.text.chat import build_messages
from persona_lens.models.text.tokens import tokenize_text
from persona_lens.reproduction.arguments import CommonArguments
from persona_lens.reproduction.entrance import enter
from persona_lens.statistics import Interval, auroc, bootstrap_auroc_by_group
from persona_lens.statistics.bootstrap import bootstrap, t_interval
from persona_lens.statistics.separation import weighted_auroc
from persona_lens.tensors import project
from persona_lens.traits import EntityQuestion, load_entity_questions
from persona_lens.vectors import (
    ActivationPairs,
    Estimator,
    FirstComponent,
    LogisticProbe,
    MeanDifference,
    ShrunkLDA,
    read_last_tokens,
    score_held_out,
)

NAME = "known_entities"
ESTIMATORS: tuple[Estimator, ...] = (MeanDifference(), FirstComponent(), LogisticProbe(), ShrunkLDA())
TRAIT = "hallucination"


@dataclass(frozen=True)
class Profile:
    """How much is asked.

    Args:
        n_pairs: Pairs of a real and an invented name of each category.
        layer_step: Every so many layers are looked at when one is chosen.
    """

    n_pairs: int
    layer_step: int


PROFILES = {"quick": Profile(22, 3), "paper": Profile(22, 1), "tiny": Profile(2, 1)}


def main(arguments: CommonArguments) -> None:
    """Run or redraw."""
    result = arguments.read(KnownEntities, NAME) if arguments.replot else run(arguments)
    result.write(arguments.out, NAME)
    print(f"{arguments.out / NAME}.html")


def run(arguments: CommonArguments) -> KnownEntities:
    """Read every question, and see what tells the real from the invented."""
    profile = arguments.pick(PROFILES)
    model = arguments.load_model()
    config, run = arguments.begin(model, profile, {"experiment": NAME})
    questions = take_pairs(load_entity_questions(), profile.n_pairs)
    categories = tuple(dict.fromkeys(one.category for one in questions))
    folds = [categories.index(one.category) for one in questions[::2]]
    pairs, tokens, surface = read(model, questions)
    surprise, everything = surface["log-likelihood, mean of its tokens"], fit_surface(list(surface.values()), folds)
    estimators = []
    with run.progress("estimators", len(ESTIMATORS)) as advance:
        for estimator in ESTIMATORS:
            estimators.append(separate(pairs, estimator, folds, profile.layer_step, surprise, everything))
            advance(1)
    predictors = {**surface, "all of these, fitted and held out": everything}
    return KnownEntities(
        config=config | {"estimators": [type(one).__name__ for one in ESTIMATORS]},
        categories=categories,
        n_pairs=len(folds),
        mean_tokens=(float(tokens[0].mean()), float(tokens[1].mean())),
        estimators=tuple(estimators),
        surface=tuple(
            SurfacePredictor(name, area(values), within(values, folds), by_category(values, folds))
            for name, values in predictors.items()
        ),
        vector=project_vector(pairs, folds) if arguments.model == EMBEDDED_MODEL else None,
    )


def take_pairs(questions: Sequence[EntityQuestion], n_pairs: int) -> list[EntityQuestion]:
    """Return the first pairs of each category."""
    taken = []
    for category in dict.fromkeys(one.category for one in questions):
        taken += [one for one in questions if one.category == category][: 2 * n_pairs]
    return taken


def read(
    model: HookedModel, questions: Sequence[EntityQuestion]
) -> tuple[ActivationPairs, Float[Tensor, "side pair"], dict[str, Float[Tensor, "side pair"]]]:
    """Read each question as a prompt: the last token's activations, and what the name alone says.

    Every surface predictor is signed so that real names should score higher.
    """
    prompts = [encode_prompt(model.tokenizer, build_messages(one.question), n_ctx=model.cfg.n_ctx) for one in questions]
    last = read_last_tokens(model, [prompt.tokens for prompt in prompts])
    spans = []
    for one, prompt in zip(questions, prompts, strict=True):
        start = prompt.text.index(one.name, prompt.text.index(one.question))
        offsets = tokenize_text(model.tokenizer, prompt.text, []).offsets
        inside = [i for i, (a, b) in enumerate(offsets) if a < start + len(one.name) and b > start]
        spans.append(TokenSpans(prompt.tokens, inside[0], inside[-1] + 1))
    likelihoods = torch.tensor(mean_log_likelihoods(model, spans))
    tokens = torch.tensor([float(span.response_end - span.response_start) for span in spans])
    letters = torch.tensor([float(len(one.name)) for one in questions])
    surface = {
        "log-likelihood, mean of its tokens": likelihoods,
        "log-likelihood, sum": likelihoods * tokens,
        "number of tokens (fewer is real)": -tokens,
        "number of letters (fewer is real)": -letters,
    }
    pairs = ActivationPairs(
        "known", pl.describe_model(model), last[0::2].clone(), last[1::2].clone(),
        tuple(one.pair for one in questions[::2]), {"source": "questions, last prompt token"},
    )  # fmt: skip
    return pairs, tokens.reshape(-1, 2).T, {name: values.reshape(-1, 2).T for name, values in surface.items()}


def separate(
    pairs: ActivationPairs,
    estimator: Estimator,
    folds: Sequence[int],
    layer_step: int,
    surprise: Float[Tensor, "side pair"],
    everything: Float[Tensor, "side pair"],
) -> EstimatorSeparation:
    """Try one estimator on each category held out, at each layer and at one chosen on the other categories."""
    n_layers = pairs.model.n_layers
    scores = torch.stack([torch.stack(score_held_out(pairs, estimator, layer, folds)) for layer in range(n_layers)])
    chosen, layers = torch.zeros_like(scores[0]), []
    labels = torch.tensor(list(folds))
    for fold in sorted(set(folds)):
        others = torch.nonzero(labels != fold).flatten().tolist()
        inner, inner_folds = pairs.take(others), [folds[i] for i in others]
        seen = {
            layer: auroc(*score_held_out(inner, estimator, layer, inner_folds))
            for layer in range(0, n_layers, layer_step)
        }
        layers.append(max(seen, key=lambda layer: seen[layer]))
        chosen[:, labels == fold] = scores[layers[-1]][:, labels == fold]
    return EstimatorSeparation(
        estimator=type(estimator).__name__,
        by_layer=tuple(area(one) for one in scores),
        layers=tuple(layers),
        chosen=area(chosen),
        within=within(chosen, folds),
        by_category=by_category(chosen, folds),
        above_surprise=within(chosen, folds, surprise),
        above_surface=within(chosen, folds, everything),
    )


def fit_surface(predictors: Sequence[Float[Tensor, "side pair"]], folds: Sequence[int]) -> Float[Tensor, "side pair"]:
    """Score each name by a logistic regression on all surface predictors, found on the other categories."""
    from sklearn.linear_model import LogisticRegression  # slow to import
    from sklearn.model_selection import LeaveOneGroupOut, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    columns = torch.stack([values.flatten() for values in predictors], dim=1).numpy()
    n_pairs = len(folds)
    is_real = np.arange(2 * n_pairs) < n_pairs
    scores = cross_val_predict(
        make_pipeline(StandardScaler(), LogisticRegression()), columns, is_real, groups=[*folds, *folds],
        cv=LeaveOneGroupOut(), method="decision_function",
    )  # fmt: skip
    return torch.from_numpy(scores).float().reshape(2, n_pairs)


def project_vector(pairs: ActivationPairs, folds: Sequence[int]) -> VectorSeparation:
    """Project on the ready vector for hallucination, nothing fitted: it should be lower for real names."""
    vector = pl.load_vector(TRAIT)
    scores = []
    for layer in range(pairs.model.n_layers):
        sides = (pairs.positive[:, layer], pairs.negative[:, layer])
        scores.append(torch.stack([-project(side, vector.unit(layer)) for side in sides]))
    tried = int(vector.provenance["setting"]["layer"])
    return VectorSeparation(TRAIT, tuple(area(one) for one in scores), tried, within(scores[tried], folds))


def area(scores: Float[Tensor, "side pair"]) -> Interval:
    """Return the AUROC, with an interval over pairs."""
    pairs = range(scores.shape[1])
    return bootstrap_auroc_by_group(scores[0], scores[1], pairs, pairs)


def by_category(scores: Float[Tensor, "side pair"], folds: Sequence[int]) -> tuple[float, ...]:
    """Return the AUROC within each category."""
    labels = torch.tensor(list(folds))
    return tuple(auroc(*scores[:, labels == fold]) for fold in sorted(set(folds)))


def within(
    scores: Float[Tensor, "side pair"], folds: Sequence[int], other: Float[Tensor, "side pair"] | None = None
) -> Interval:
    """Return the mean AUROC within categories, or by how much it is above another's of the same names.

    Pairs are resampled within their categories, for both at once.
    """
    labels = torch.tensor(list(folds))
    members = [labels == fold for fold in sorted(set(folds))]

    def average(values: Float[Tensor, "side pair"], counts: Sequence[np.ndarray]) -> np.ndarray:
        areas = [
            weighted_auroc(*values[:, member].double().numpy())(count, count)
            for member, count in zip(members, counts, strict=True)
        ]
        mean: np.ndarray = np.mean(areas, axis=0)
        return mean

    def compute(*counts: np.ndarray) -> np.ndarray:
        return average(scores, counts) - (0.0 if other is None else average(other, counts))

    sizes = tuple(int(member.sum()) for member in members)
    return t_interval(bootstrap(compute, sizes, 2000, 0.95, 0), sum(sizes) - len(sizes) + 1)


if __name__ == "__main__":
    enter(main, CommonArguments, __doc__)
