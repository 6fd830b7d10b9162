"""Does a direction found on one kind of statement tell true from false on others, and does moving along it count?

    python experiments/truth.py                                   # ten minutes on two cores

After "The Geometry of Truth" (arXiv 2310.06824), sections 5 and 6, with statements of our own. Each estimator finds a
direction on one kind of statement and is tried on every other, at each layer; the matrix stands at the layer with the
best AUROC on the first kind's own held-out groups. Then the causal test: the model is asked whether statements are
true, and a direction found on the five other kinds is added over the tokens of false statements and taken from those of
true ones, at the layer and length that moved the judgement of those other kinds furthest. The null is random directions
of the same length. Layer and length were chosen with the mean difference, and all estimators share them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import TypeAlias

import torch
from jaxtyping import Float
from results.truth import Effect, EstimatorTransfer, Judgement, Transfer, Truth
from torch import Tensor

from persona_lens.evaluation import judge_statements
from persona_lens.models import HookedModel
from persona_lens.reproduction.arguments import CommonArguments
from persona_lens.reproduction.entrance import enter
from persona_lens.run import Run
from persona_lens.statistics import (
    Interval,
    auroc,
    bootstrap_auroc_by_group,
    bootstrap_mean,
    mean_over_directions_interval,
)
from persona_lens.streams import Stream
from persona_lens.tensors import sample_random_directions
from persona_lens.traits import Statement, list_statement_kinds, load_statements
from persona_lens.vectors import (
    ActivationPairs,
    Estimator,
    LinearClassifier,
    LogisticProbe,
    MeanDifference,
    ShrunkLDA,
    fit_classifier,
    read_statements,
    score_held_out,
)

NAME = "truth"
ESTIMATORS: tuple[Estimator, ...] = (MeanDifference(), LogisticProbe(), ShrunkLDA())


@dataclass(frozen=True)
class Profile:
    """How much is read and asked.

    Args:
        n_groups: Groups of four statements of each kind.
        n_folds: Folds of a kind's own held-out groups.
        n_judged: Groups of each kind that the causal test judges.
        n_screened: Groups of each other kind that a layer is chosen on.
        depths: Where a layer is looked for, as fractions of the number of layers.
        coefficients: How many mean differences are added; one is chosen with the layer.
        n_random: Random directions.
    """

    n_groups: int
    n_folds: int
    n_judged: int
    n_screened: int
    depths: tuple[float, ...]
    coefficients: tuple[float, ...]
    n_random: int


DEPTHS, COEFFICIENTS = (0.25, 0.45, 0.65), (1.0, 4.0, 16.0)
PROFILES = {
    "quick": Profile(40, 5, 6, 1, DEPTHS, COEFFICIENTS, 16),
    "paper": Profile(40, 5, 40, 8, DEPTHS, COEFFICIENTS, 64),
    "tiny": Profile(4, 2, 3, 1, (0.3, 0.7), (1.0, 2.0), 2),
}


def main(arguments: CommonArguments) -> None:
    """Run or redraw."""
    result = arguments.read(Truth, NAME) if arguments.replot else run(arguments)
    result.write(arguments.out, NAME)
    print(f"{arguments.out / NAME}.html")


def run(arguments: CommonArguments) -> Truth:
    """Read every kind, try every direction on every kind, and move the model's judgement."""
    profile = arguments.pick(PROFILES)
    model = arguments.load_model()
    config, run = arguments.begin(model, profile, {"experiment": NAME})
    kinds = list_statement_kinds()
    statements = {kind: load_statements(kind)[: 4 * profile.n_groups] for kind in kinds}
    pairs = {kind: read_statements(model, statements[kind]) for kind in kinds}
    with run.progress("estimators", len(ESTIMATORS)) as advance:
        transfers = []
        for estimator in ESTIMATORS:
            transfers.append(try_estimator(pairs, estimator, profile.n_folds))
            advance(1)
    judged = move_judgements(model, statements, pairs, profile, arguments.seed, run)
    shifts = torch.cat([one.by_group for one in judged], dim=1)
    randoms = torch.cat([one.random_by_group for one in judged], dim=1)
    gaps = torch.cat([one.gap_by_group for one in judged])
    return Truth(
        config=config | {"estimators": [type(one).__name__ for one in ESTIMATORS]},
        kinds=kinds,
        n_statements=tuple(len(statements[kind]) for kind in kinds),
        transfers=tuple(transfers),
        judgements=tuple(one.note for one in judged),
        auroc_by_kind=judge_pooled(judged),
        effects=list_effects(shifts, torch.cat([one.to_true for one in judged], dim=1),
                             torch.cat([one.to_false for one in judged], dim=1), randoms, gaps),
    )  # fmt: skip


# Transfer ---------------------------------------------------------------------------------------------------------


def try_estimator(pairs: Mapping[str, ActivationPairs], estimator: Estimator, n_folds: int) -> EstimatorTransfer:
    """Find a direction on each kind and layer, and try it on every kind."""
    kinds = list(pairs)
    n_layers = next(iter(pairs.values())).model.n_layers
    scores: dict[tuple[str, str], Float[Tensor, "layer side pair"]] = {}
    for trained in kinds:
        found = [fit(pairs[trained], estimator, layer) for layer in range(n_layers)]
        for tested in kinds:
            rows = [
                score(one, pairs[tested], layer)
                if trained != tested
                else score_apart(pairs[trained], estimator, layer, n_folds)
                for layer, one in enumerate(found)
            ]
            scores[trained, tested] = torch.stack(rows)
    chosen = {kind: choose_layer(scores[kind, kind]) for kind in kinds}
    cells, hits_as_chosen, aurocs, by_layer = [], [], [], []
    for (trained, tested), scored in scores.items():
        layer, groups = chosen[trained], pairs[tested].questions
        true, false = scored[layer]
        area = bootstrap_auroc_by_group(true, false, groups, groups)
        hits = average_groups(is_right(scored), groups)
        cells.append(Transfer(trained, tested, layer, area, bootstrap_mean(hits[layer])))
    for tested in kinds:
        others = [kind for kind in kinds if kind != tested]
        groups = pairs[tested].questions
        right = torch.stack([average_groups(is_right(scores[kind, tested]), groups) for kind in others])
        hits_as_chosen.append(torch.stack([right[i, chosen[kind]] for i, kind in enumerate(others)]).mean(dim=0))
        by_layer.append(right.mean(dim=0))
        aurocs.append(mean(auroc(*scores[kind, tested][chosen[kind]]) for kind in others))
    return EstimatorTransfer(
        estimator=type(estimator).__name__,
        cells=tuple(cells),
        auroc=bootstrap_mean(torch.tensor(aurocs)),
        accuracy=bootstrap_mean(torch.cat(hits_as_chosen)),
        accuracy_by_layer=tuple(bootstrap_mean(values) for values in torch.cat(by_layer, dim=1)),
    )


def fit(pairs: ActivationPairs, estimator: Estimator, layer: int) -> LinearClassifier:
    """Find a direction on all of a kind's pairs."""
    return fit_classifier(pairs.positive[:, layer], pairs.negative[:, layer], estimator, layer)


def score(found: LinearClassifier, tested: ActivationPairs, layer: int) -> Float[Tensor, "side pair"]:
    """Score a kind's pairs by a direction found on another kind."""
    return torch.stack([found.score(side[:, layer]) for side in (tested.positive, tested.negative)])


def score_apart(pairs: ActivationPairs, estimator: Estimator, layer: int, n_folds: int) -> Float[Tensor, "side pair"]:
    """Score a kind's pairs by directions found on its own other groups."""
    return torch.stack(score_held_out(pairs, estimator, layer, [group % n_folds for group in pairs.questions]))


def choose_layer(scores: Float[Tensor, "layer side pair"]) -> int:
    """Return the layer of the best AUROC, the first of equal ones."""
    return max(range(len(scores)), key=lambda layer: auroc(*scores[layer]))


def is_right(scores: Float[Tensor, "layer side pair"]) -> Float[Tensor, "layer pair"]:
    """Return the share of each pair's two statements on their side of the threshold."""
    return ((scores[:, 0] > 0).float() + (scores[:, 1] < 0).float()) / 2


def average_groups(values: Float[Tensor, "row pair"], groups: Sequence[int]) -> Float[Tensor, "row group"]:
    """Average pairs within groups: a group is what was drawn independently."""
    labels = torch.tensor(list(groups))
    return torch.stack([values[:, labels == group].mean(dim=1) for group in sorted(set(groups))], dim=1)


# The causal test --------------------------------------------------------------------------------------------------

# Statements, each with what the model says of it unsteered.
Asked: TypeAlias = Sequence[tuple[Statement, Tensor]]


@dataclass(frozen=True, eq=False)
class Judged:
    """One kind's judgement: what the record keeps, and what the means over kinds are made of."""

    note: Judgement
    unsteered: Float[Tensor, "side pair"]
    by_group: Float[Tensor, "estimator group"]
    to_true: Float[Tensor, "estimator group"]
    to_false: Float[Tensor, "estimator group"]
    random_by_group: Float[Tensor, "random group"]
    gap_by_group: Float[Tensor, " group"]


def move_judgements(
    model: HookedModel,
    statements: Mapping[str, Sequence[Statement]],
    pairs: Mapping[str, ActivationPairs],
    profile: Profile,
    seed: int,
    run: Run,
) -> list[Judged]:
    """Move each kind's statements along directions found on all others."""
    kinds = list(statements)
    n_layers = model.cfg.n_layers
    layers = sorted({min(round(depth * n_layers), n_layers - 1) for depth in profile.depths})
    settings = [(layer, coefficient) for layer in layers for coefficient in profile.coefficients]
    unsteered = {kind: ask(model, statements[kind]) for kind in kinds}

    def take(kind: str, n_groups: int) -> Asked:
        rows = spread(len(statements[kind]) // 4, n_groups)
        return [(statements[kind][row], unsteered[kind][row]) for row in rows]

    judged = []
    with run.progress("kinds judged", len(kinds)) as advance:
        for index, kind in enumerate(kinds):
            others = [other for other in kinds if other != kind]
            found = FoundElsewhere.of([pairs[other] for other in others])
            screened = [one for other in others for one in take(other, profile.n_screened)]
            layer, times = choose_setting(model, found, screened, settings)
            length = times * found.measure(layer)
            drawn = sample_random_directions(
                torch.tensor([length]), model.cfg.d_model, profile.n_random, seed + Stream.TRUTH + index
            )[:, 0]
            directions = [*(length * found.find(one, layer) for one in ESTIMATORS), *drawn]
            asked = take(kind, profile.n_judged)
            shifts = torch.stack([shift(model, asked, one, layer) for one in directions])
            judged.append(note_judgement(kind, layer, times, length, torch.stack([one for _, one in asked]), shifts))
            advance(1)
    return judged


@dataclass(frozen=True, eq=False)
class FoundElsewhere:
    """What is found on all kinds but the one that is judged."""

    positive: Float[Tensor, "pair layer d_model"]
    negative: Float[Tensor, "pair layer d_model"]

    @classmethod
    def of(cls, pairs: Sequence[ActivationPairs]) -> FoundElsewhere:
        """Put the pairs of several kinds together."""
        return cls(torch.cat([one.positive for one in pairs]), torch.cat([one.negative for one in pairs]))

    def find(self, estimator: Estimator, layer: int) -> Float[Tensor, " d_model"]:
        """Return the unit direction from false to true."""
        return fit_classifier(self.positive[:, layer], self.negative[:, layer], estimator, layer).unit

    def measure(self, layer: int) -> float:
        """Return the mean difference's length."""
        return float((self.positive[:, layer].mean(dim=0) - self.negative[:, layer].mean(dim=0)).norm())


def choose_setting(
    model: HookedModel, found: FoundElsewhere, screened: Asked, settings: Sequence[tuple[int, float]]
) -> tuple[int, float]:
    """Return the layer and the number of mean differences that move judgements of other kinds furthest."""
    rises = [
        float(shift(model, screened, times * found.measure(layer) * found.find(MeanDifference(), layer), layer).mean())
        for layer, times in settings
    ]
    return settings[rises.index(max(rises))]


def spread(n_groups: int, n_taken: int) -> list[int]:
    """Return the statements of some groups, which lie apart since neighbours are of one sort, such as sums."""
    taken = sorted({round(i * n_groups / min(n_taken, n_groups)) for i in range(min(n_taken, n_groups))})
    return [4 * group + i for group in taken for i in range(4)]


def ask(model: HookedModel, statements: Sequence[Statement]) -> Float[Tensor, " statement"]:
    """Ask the model, unsteered, whether each statement is true."""
    return judge_statements(model, [one.text for one in statements])


def shift(
    model: HookedModel, asked: Asked, direction: Float[Tensor, " d_model"], layer: int
) -> Float[Tensor, " statement"]:
    """Return how far each judgement moves the intended way: false statements up, true ones down."""
    signs = torch.tensor([-1.0 if one.is_true else 1.0 for one, _ in asked])
    moved = judge_statements(
        model, [one.text for one, _ in asked], shifts=signs[:, None] * direction.float(), layer=layer
    )
    return signs * (moved - torch.stack([before for _, before in asked]))


def note_judgement(
    kind: str,
    layer: int,
    coefficient: float,
    norm: float,
    unsteered: Float[Tensor, " statement"],
    shifts: Float[Tensor, "direction statement"],
) -> Judged:
    """Sum up one kind; statements come as true and false in turn, four a group."""
    n = len(ESTIMATORS)
    grouped = shifts.reshape(len(shifts), -1, 2, 2)  # direction, group, pair, side
    by_group, to_true, to_false = grouped.mean(dim=(2, 3)), grouped[..., 1].mean(dim=2), grouped[..., 0].mean(dim=2)
    sides = unsteered.reshape(-1, 2).T
    gaps = (sides[0] - sides[1]).reshape(-1, 2).mean(dim=1)
    groups = [i // 2 for i in range(sides.shape[1])]
    note = Judgement(
        kind=kind,
        n_statements=len(unsteered),
        layer=layer,
        coefficient=coefficient,
        norm=norm,
        auroc=bootstrap_auroc_by_group(sides[0], sides[1], groups, groups),
        gap=bootstrap_mean(gaps),
        effects=list_effects(by_group[:n], to_true[:n], to_false[:n], by_group[n:], gaps),
        random=tuple(by_group[n:].mean(dim=1).tolist()),
    )
    return Judged(note, sides, by_group[:n], to_true[:n], to_false[:n], by_group[n:], gaps)


def list_effects(
    shifts: Float[Tensor, "estimator group"],
    to_true: Float[Tensor, "estimator group"],
    to_false: Float[Tensor, "estimator group"],
    randoms: Float[Tensor, "random group"],
    gaps: Float[Tensor, " group"],
) -> tuple[Effect, ...]:
    """Sum up each estimator's shifts, with intervals over groups and, against random ones, over directions too."""
    gap = bootstrap_mean(gaps)
    effects = []
    for index, estimator in enumerate(ESTIMATORS):
        found = bootstrap_mean(shifts[index])
        # Of a gap that may be nothing, no share can be taken; the interval takes the gap as known.
        shares = [end / gap.estimate for end in (found.estimate, found.low, found.high)] if gap.low > 0 else None
        effects.append(
            Effect(
                estimator=type(estimator).__name__,
                shift=found,
                to_true=bootstrap_mean(to_true[index]),
                to_false=bootstrap_mean(to_false[index]),
                above_random=mean_over_directions_interval(shifts[index] - randoms),
                indirect_effect=Interval.missing() if shares is None else Interval(*shares),
            )
        )
    return tuple(effects)


def judge_pooled(judged: Sequence[Judged]) -> Interval:
    """Average the kinds' AUROCs, with an interval over kinds."""
    return bootstrap_mean(torch.tensor([one.note.auroc.estimate for one in judged]))


if __name__ == "__main__":
    enter(main, CommonArguments, __doc__)
