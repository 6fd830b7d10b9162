"""Which direction, at which layer, says before a response how strongly a trait will show?

    python experiments/detection.py --trait evil

Eight system prompts graded from suppressing to promoting (graded_prompts.json) × questions: projections of the last
prompt token on directions of every estimator at every layer, against the mean score of the responses. Direction and
layer are chosen on half of the questions, by one judge, by r inside the conditions; what is chosen is measured on the
other half, by both. Beside the directions that know nothing of scores stands one that was fitted to them, ridge
regression on the choosing half: the most that anything linear could have.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from results.detection import FITTED, Detection, TraitDetection
from torch import Tensor

import persona_lens as pl
from persona_lens.evaluation import Condition, rescore
from persona_lens.models import HookedModel, RolloutRequest
from persona_lens.models.text.chat import encode_prompt
from persona_lens.monitoring import choose_detector, project_at_every_layer
from persona_lens.reproduction.arguments import CommonArguments, read_traits
from persona_lens.reproduction.entrance import enter
from persona_lens.reproduction.estimated import WrittenReadings, read_written
from persona_lens.reproduction.judges import prepare_judges
from persona_lens.run import Run
from persona_lens.streams import Stream
from persona_lens.traits import load_written_examples

NAME = "detection"


@dataclass(frozen=True)
class Profile:
    """How much is sampled."""

    n_prompts: int = 8
    n_questions: int = 30
    rollouts: int = 1
    max_new_tokens: int = 48
    temperature: float = 0.7
    n_removed: int = 10
    n_examples: int | None = None


PROFILES = {
    "quick": Profile(),
    "paper": Profile(n_questions=60, rollouts=10, max_new_tokens=1000, temperature=1.0),
    "tiny": Profile(3, 12, 1, 6, 0.7, 2, 10),
}


@dataclass(frozen=True)
class Arguments(CommonArguments):
    """What predicts the score of what comes, for one or several traits?"""

    prompts: Path = Path(__file__).parent / "graded_prompts.json"
    """System prompts by trait, from suppressing to promoting."""


def main(arguments: Arguments) -> None:
    """Run or redraw."""
    result = arguments.read(Detection, NAME) if arguments.replot else run(arguments.pick(PROFILES), arguments)
    result.write(arguments.out, NAME)
    print(f"{arguments.out / NAME}.html: {result.say_finding()}")


def run(profile: Profile, arguments: Arguments) -> Detection:
    """Measure each trait."""
    prompts: dict[str, list[str]] = json.loads(arguments.prompts.read_text(encoding="utf-8"))
    traits = read_traits(arguments.trait or tuple(prompts), 5, 20)
    missing = [trait.name for trait in traits if trait.name not in prompts]
    if missing:
        raise SystemExit(f"--prompts must name a file with prompts for {missing}. {arguments.prompts} has none.")
    model = arguments.load_model()
    config, run = arguments.begin(model, profile, {"experiment": NAME, "prompts": prompts})
    # Once, and only where a trait is not there yet.
    read = cache(partial(read_written, model, [trait.name for trait in traits], profile.n_examples))
    found = []
    with run.progress("traits", len(traits)) as advance:
        for trait in traits:
            own = Run(run.part({"trait": trait.to_dict()}).store)
            systems = prompts[trait.name][: profile.n_prompts]
            measure = partial(detect, model, trait, read, systems, profile, arguments, own)
            found.append(own.load_or_measure("detection", TraitDetection, measure))
            advance(1)
    return Detection(config | {"traits": [one.to_dict() for one in traits]}, tuple(found))


def detect(
    model: HookedModel,
    trait: pl.Trait,
    read: Callable[[], WrittenReadings],
    systems: list[str],
    profile: Profile,
    arguments: Arguments,
    run: Run,
) -> TraitDetection:
    """Sample responses under every prompt, and look for what said so before."""
    once = pl.Sampling(profile.max_new_tokens, profile.temperature, seed=arguments.seed)
    judges = prepare_judges(model, trait, once, arguments.share(model), n_examples=profile.n_examples)
    judging = load_written_examples(trait.name, "judging")
    asked = (*trait.evaluation_questions, *(one.question for one in judging))[: profile.n_questions]
    conditions = [Condition(system=system, name=str(index)) for index, system in enumerate(systems, start=1)]
    responses = pl.score_conditions(
        model, judges.reader, conditions, asked, sampling=replace(once, rollouts=profile.rollouts),
        stream=(Stream.DETECTION,), run=run,
    )  # fmt: skip
    scores = {one.name: rescore(responses, one).by_question.flatten() for one in (judges.reader, judges.sentences)}
    is_scored = ~torch.stack(list(scores.values())).isnan().any(dim=0)
    kept = is_scored.nonzero()[:, 0].tolist()
    chats = [RolloutRequest(q, (), one.system).messages for one in conditions for q in asked]
    labels = [one.name for one in conditions for _ in asked]
    questions = [q for _ in conditions for q in asked]
    choosing = list(asked[0::2])
    vectors = read().find_vectors(trait.name, profile.n_removed)
    projections = {name: values[:, kept] for name, values in project_at_every_layer(model, chats, vectors).items()}
    labels, questions = [labels[row] for row in kept], [questions[row] for row in kept]
    scores = {name: values[kept] for name, values in scores.items()}
    first, second = scores.values()
    is_choosing = np.array([question in choosing for question in questions])
    prompts = [encode_prompt(model.tokenizer, chats[row]).tokens for row in kept]
    activations = pl.vectors.read_last_tokens(model, prompts)
    projections[FITTED] = fit_ridge(activations, first, labels, questions, is_choosing)
    chosen = {
        name: choose_detector({name: values}, first, labels, questions, choosing=choosing, seed=arguments.seed)
        for name, values in projections.items()
    }
    unfitted = {name: values for name, values in projections.items() if name != FITTED}
    best = choose_detector(unfitted, first, labels, questions, choosing=choosing, seed=arguments.seed)
    rest = np.flatnonzero(~is_choosing).tolist()
    return TraitDetection(
        trait=trait.name,
        validations=judges.validations,
        best=best.name,
        chosen=chosen,
        second={
            name: pl.monitoring.measure_monitoring(
                projections[name][one.layer][rest], second[rest],
                [labels[row] for row in rest], [questions[row] for row in rest], seed=arguments.seed,
            )
            for name, one in chosen.items()
        },
    )  # fmt: skip


def fit_ridge(
    activations: Float[Tensor, "prompt layer d_model"],
    scores: Float[Tensor, " prompt"],
    conditions: list[str],
    questions: list[str],
    is_choosing: ndarray,
) -> Float[Tensor, "layer prompt"]:
    """Predict scores inside conditions from activations, fitted on the choosing prompts; these by cross-validation."""
    from sklearn.linear_model import RidgeCV
    from sklearn.model_selection import GroupKFold, cross_val_predict

    rows, groups = np.flatnonzero(is_choosing), np.array(questions)[is_choosing]
    folds = GroupKFold(min(5, len(set(groups))))
    y = _center(scores.double().numpy()[:, None], conditions)[:, 0]
    predicted = []
    for layer in range(activations.shape[1]):
        x = _center(activations[:, layer].double().numpy(), conditions)
        x /= x.std() or 1.0
        ridge = RidgeCV(alphas=np.logspace(1, 5, 9))
        values = ridge.fit(x[rows], y[rows]).predict(x)
        values[rows] = cross_val_predict(ridge, x[rows], y[rows], groups=groups, cv=folds)
        predicted.append(torch.from_numpy(values))
    return torch.stack(predicted)


def _center(values: ndarray, conditions: list[str]) -> ndarray:
    """Take each condition's mean away."""
    centered = values.copy()
    for label in set(conditions):
        rows = np.array(conditions) == label
        centered[rows] -= values[rows].mean(axis=0)
    return centered


if __name__ == "__main__":
    enter(main, Arguments, __doc__)
