"""How often do intervals hold the true value? Each kind that the package makes, at the sizes that it is used at.

    python benchmarks/interval_coverage.py        # about five minutes on one core

Data are drawn again and again from populations whose true value is known, and each time an interval is made as the
package makes it, and as it was made before: by percentiles of the same kind of bootstrap (over questions alone where
directions are drawn too). Writes ``docs/results/interval_coverage.json``, and the tables of
``docs/results/intervals.md``.
"""

from __future__ import annotations

import os

if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when NumPy and torch are loaded

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from numpy import ndarray
from numpy.random import Generator
from tqdm.auto import tqdm

from persona_lens.monitoring.correlation import measure_monitoring
from persona_lens.records import Record
from persona_lens.statistics import (
    Interval,
    auroc,
    bootstrap_auroc,
    bootstrap_auroc_by_group,
    bootstrap_line_by_group,
    bootstrap_mean,
    bootstrap_paired_difference,
    bootstrap_pearson_difference_by_group,
    bootstrap_pearson_r,
    bootstrap_pearson_r_by_group,
    bootstrap_spearman_r,
    mean_over_directions_interval,
)
from persona_lens.statistics.bootstrap import Resampled, bootstrap, draw_multinomial, t_interval
from persona_lens.statistics.correlation import make_ranker, standardize, weighted_pearson_r
from persona_lens.statistics.line import line_height
from persona_lens.statistics.separation import weighted_auroc
from persona_lens.storage import collect_versions

OUT = Path(__file__).parents[1] / "docs" / "results"
LEVEL, GOAL = 0.95, 0.93
# Draws that a true value is taken from where no formula gives it.
MANY = 1_000_000
# What stands around the generated parts of the page.
MARKS = ("<!-- {} -->\n", "<!-- /{} -->")

Arrays = tuple[ndarray, ...]


@dataclass(frozen=True)
class Arguments:
    """What is simulated, and where it is written."""

    repetitions: int = 2000  # data sets of each row
    resamples: int = 500  # of each interval
    seed: int = 0
    out: Path = OUT


@dataclass(frozen=True)
class Coverage:
    """Shares of intervals that held the true value, and their median widths; ``before`` is the percentile bootstrap."""

    kind: str
    size: str
    population: str
    truth: float
    before: float
    now: float
    width_before: float
    width_now: float


@dataclass(frozen=True)
class IntervalCoverage(Record):
    """How often each kind of 95 % interval held the true value.

    Args:
        rows: One a kind, size and population.
        repetitions: Data sets of each row.
        resamples: Resamples of each interval.
        seed: Of everything drawn.
        versions: Of the libraries.
    """

    rows: tuple[Coverage, ...]
    repetitions: int
    resamples: int
    seed: int
    versions: dict[str, Any]


@dataclass(frozen=True)
class Case:
    """Data that are drawn, and the intervals that are made of them.

    Args:
        kinds: What is estimated; several from the same data where the package does so.
        size: In words.
        population: In words.
        truth: The true value of each.
        draw: Draws one set of data.
        now: Makes the package's intervals with so many resamples and a seed.
        before: Resamples for the percentile intervals.
    """

    kinds: tuple[str, ...]
    size: str
    population: str
    truth: tuple[float, ...]
    draw: Callable[[Generator], Arrays]
    now: Callable[..., Sequence[Interval]]
    before: Callable[..., Sequence[Resampled]]


# Populations ------------------------------------------------------------------------------------------------------


def normal(rng: Generator, shape: tuple[int, ...]) -> ndarray:
    """Draw normal values."""
    return rng.normal(50, 15, shape)


def both_ends(rng: Generator, shape: tuple[int, ...]) -> ndarray:
    """Draw scores as a judge gives them: piled up at 0 and at 100."""
    return 100 * rng.beta(0.3, 0.6, shape)


def mostly_zero(rng: Generator, shape: tuple[int, ...], zeros: float = 0.6) -> ndarray:
    """Draw scores of which most are exactly 0."""
    return np.where(rng.random(shape) < zeros, 0.0, 100 * rng.beta(2, 2, shape))


def five_steps(rng: Generator, shape: tuple[int, ...]) -> ndarray:
    """Draw from five values, low ones more often."""
    return rng.choice([0.0, 25.0, 50.0, 75.0, 100.0], shape, p=[0.5, 0.2, 0.15, 0.1, 0.05])


def losses(rng: Generator, shape: tuple[int, ...]) -> ndarray:
    """Draw log-normal values, as losses and divergences are."""
    return np.exp(rng.normal(0, 0.75, shape))


def right_or_wrong(rng: Generator, shape: tuple[int, ...]) -> ndarray:
    """Draw answers, 60 % right."""
    return (rng.random(shape) < 0.6).astype(float)


MEANS: dict[str, Callable[[Generator, tuple[int, ...]], ndarray]] = {
    "normal": normal,
    "scores at 0 and 100": both_ends,
    "60 % zeros": mostly_zero,
    "70 % zeros": partial(mostly_zero, zeros=0.7),
    "five values": five_steps,
    "log-normal": losses,
}


def normal_pairs(rng: Generator, n: int, r: float) -> tuple[ndarray, ndarray]:
    """Draw normal pairs."""
    x = rng.normal(size=n)
    return x, r * x + np.sqrt(1 - r * r) * rng.normal(size=n)


def skewed_pairs(rng: Generator, n: int) -> tuple[ndarray, ndarray]:
    """Draw log-normal pairs."""
    x, y = normal_pairs(rng, n, 0.6)
    return np.exp(0.75 * x), np.exp(0.75 * y)


def saturated_pairs(rng: Generator, n: int) -> tuple[ndarray, ndarray]:
    """Draw projections with scores that saturate at 0 and 100."""
    x, y = normal_pairs(rng, n, 0.7)
    return x, 100 / (1 + np.exp(-3 * (y - 0.5)))


def tied_pairs(rng: Generator, n: int) -> tuple[ndarray, ndarray]:
    """Draw pairs of few values, most of them the lowest."""
    x, y = normal_pairs(rng, n, 0.6)
    steps = [0, 0.5, 1, 1.5]
    return 25.0 * np.digitize(x, steps), 25.0 * np.digitize(y, steps)


PAIRS: dict[str, Callable[[Generator, int], tuple[ndarray, ndarray]]] = {
    "normal, r = 0": partial(normal_pairs, r=0.0),
    "normal, r = 0.9": partial(normal_pairs, r=0.9),
    "log-normal": skewed_pairs,
    "saturated scores": saturated_pairs,
    "five values": tied_pairs,
}


def shifted(rng: Generator, n: int, by: float, spread: float = 1.0) -> Arrays:
    """Draw two normal classes."""
    return rng.normal(by, spread, n), rng.normal(0, 1, n)


def judged(rng: Generator, n: int) -> Arrays:
    """Draw scores at both ends, those of one class mostly high."""
    return 100 - both_ends(rng, (n,)), both_ends(rng, (n,))


def tied(rng: Generator, n: int) -> Arrays:
    """Draw five values, high ones more often in one class."""
    return 100 - five_steps(rng, (n,)), five_steps(rng, (n,))


CLASSES: dict[str, Callable[[Generator, int], Arrays]] = {
    "1 standard deviation": partial(shifted, by=1.0),
    "3 standard deviations": partial(shifted, by=3.0),
    "spread of 3 and 1": partial(shifted, by=2.0, spread=3.0),
    "scores at 0 and 100": judged,
    "five values": tied,
}


def grouped(rng: Generator, n: int, each: int, by: float, saturated: bool) -> Arrays:
    """Draw several scores a class and question; questions shift both classes together and each by itself."""
    shared = rng.normal(0, 0.6, (n, 1))
    sides = [level + shared + rng.normal(0, 0.7, (n, 1)) + rng.normal(size=(n, each)) for level in (by, 0.0)]
    if saturated:
        sides = [np.round(100 / (1 + np.exp(-2 * (side - by / 2)))) for side in sides]
    return sides[0], sides[1]


def crossed(rng: Generator, shape: tuple[int, int], spreads: tuple[float, float, float], saturated: bool) -> Arrays:
    """Draw scores of directions × questions."""
    parts = [rng.normal(0, s, of) for s, of in zip(spreads, ((shape[0], 1), (1, shape[1]), shape), strict=True)]
    return (_saturate(sum(parts), saturated),)


def _saturate(values: Any, saturated: bool) -> ndarray:
    scores: ndarray = 100 / (1 + np.exp(-(values - 15) / 8)) if saturated else values
    return scores


def monitored(rng: Generator, n: int, n_conditions: int, slope: float, saturated: bool) -> Arrays:
    """Draw projections and scores of questions × conditions; conditions and questions shift both."""
    levels = np.linspace(-1.5, 1.5, n_conditions)
    own = rng.normal(size=(n, n_conditions))
    x = levels + 0.5 * rng.normal(size=(n, 1)) + own
    y = levels + 0.5 * rng.normal(size=(n, 1)) + slope * own + rng.normal(size=(n, n_conditions))
    return x, 100 / (1 + np.exp(-1.5 * y)) if saturated else 50 + 10 * y


def trained(rng: Generator, n: int, each: int, share: float) -> Arrays:
    """Draw a shift, another's shift and the score of models of a few datasets, ``"dataset model"`` each.

    Shifts correlate with the score by 0.7 and 0.4; a share of every variance lies between datasets.
    """

    def draw() -> ndarray:
        drawn: ndarray = np.sqrt(share) * rng.normal(size=(n, 1)) + np.sqrt(1 - share) * rng.normal(size=(n, each))
        return drawn

    score = draw()
    shift, other = (r * score + np.sqrt(1 - r**2) * draw() for r in (0.7, 0.4))
    return shift, other, score


# Cases ------------------------------------------------------------------------------------------------------------


def list_cases(seed: int) -> Iterator[Case]:
    """List what is simulated."""
    large = np.random.default_rng([seed, 1])
    for name, population in MEANS.items():
        truth = float(population(large, (4 * MANY,)).mean())
        for n in (10, 20, 40):
            yield Case(
                ("mean",), f"{n} questions", name, (truth,), partial(_draw_one, population, n), mean_now, mean_before
            )
    truth = 0.6
    for n in (40, 100):
        draw = partial(_draw_one, right_or_wrong, n)
        yield Case(("mean",), f"{n} items", "60 % right", (truth,), draw, mean_now, mean_before)
    for name, steered in (("scores with a shared part", shared_sides), ("scores at 0 and 100", judged_sides)):
        truth = float(np.subtract(*steered(large, MANY)).mean())
        for n in (10, 20):
            yield Case(
                ("paired difference",), f"{n} questions", name, (truth,), partial(steered, n=n), pairs_now, pairs_before
            )
    totals, lengths = texts(large, MANY)
    yield Case(
        ("ratio of sums",), "40 texts", "losses of texts", (float(totals.sum() / lengths.sum()),),
        partial(texts, n=40), ratio_now, ratio_before,
    )  # fmt: skip
    for name, draw_pairs in PAIRS.items():
        x, y = draw_pairs(large, MANY)
        truth = float(np.corrcoef(x, y)[0, 1]) if name != "normal, r = 0" else 0.0
        for n in (10, 15, 18, 60):
            now, before = partial(of_pair, bootstrap_pearson_r), pearson_before
            yield Case(("Pearson's r",), f"{n} pairs", name, (truth,), partial(_draw_units, draw_pairs, n), now, before)
        if name in ("normal, r = 0.9", "five values"):
            ones = np.ones((1, MANY))
            truth = float(np.corrcoef(*(make_ranker(side)(ones)[0] for side in (x, y)))[0, 1])
            for n in (20, 60, 120):
                now, before = partial(of_pair, bootstrap_spearman_r), spearman_before
                draw = partial(_draw_units, draw_pairs, n)
                yield Case(("Spearman's r",), f"{n} responses", name, (truth,), draw, now, before)
    for name, draw_classes in CLASSES.items():
        truth = auroc(*tensors(draw_classes(large, MANY)))
        for n in (10, 20, 60):
            if n < 60 or "standard" in name:
                now, before = partial(of_pair, bootstrap_auroc), auroc_before
                yield Case(("AUROC",), f"{n} + {n}", name, (truth,), partial(_draw_units, draw_classes, n), now, before)
    for name, by, saturated in (("1", 1.0, False), ("4", 4.0, False), ("saturated scores", 3.0, True)):
        truth = auroc(*(side.flatten() for side in tensors(grouped(large, MANY // 3, 3, by, saturated))))
        for n in (10, 20):
            yield Case(
                ("AUROC by group",), f"{n} questions × 3 a class",
                name if saturated else f"{name} standard deviation{'s' if by > 1 else ''}", (truth,),
                partial(grouped, n=n, each=3, by=by, saturated=saturated), groups_now, groups_before,
            )  # fmt: skip
    for name, spreads, saturated in (
        ("directions vary less", (5.0, 20.0, 15.0), False),
        ("directions vary more", (15.0, 10.0, 15.0), False),
        ("cells alone vary", (0.0, 0.0, 15.0), False),
        ("scores at 0 and 100", (8.0, 20.0, 15.0), True),
    ):
        cells = large.normal(0, np.sqrt(np.square(spreads).sum()), 4 * MANY)
        truth = float(_saturate(cells, saturated).mean()) if saturated else 0.0
        for shape in ((16, 10), (16, 20), (4, 10)):
            yield Case(
                ("mean over directions",), f"{shape[0]} directions × {shape[1]} questions", name, (truth,),
                partial(crossed, shape=shape, spreads=spreads, saturated=saturated), crossed_now, crossed_before,
            )  # fmt: skip
    for name, slope, saturated in (("normal", 0.7, False), ("unrelated inside", 0.0, False), ("saturated", 0.7, True)):
        x, y = monitored(large, MANY // 4, 4, slope, saturated)
        inside = [float(np.corrcoef(x[:, c], y[:, c])[0, 1]) for c in range(4)]
        truths = (float(np.corrcoef(x.ravel(), y.ravel())[0, 1]), float(np.mean(inside)))
        for n in (10, 20):
            yield Case(
                ("r by question, overall", "r by question, within conditions"), f"{n} questions × 4 conditions", name,
                truths, partial(monitored, n=n, n_conditions=4, slope=slope, saturated=saturated),
                monitored_now, monitored_before,
            )  # fmt: skip
    for share in (0.2, 0.8):
        for n, each in ((6, 2), (12, 2)):
            yield Case(
                ("r by dataset", "difference of two r by dataset", "line by dataset"), f"{n} datasets × {each} models",
                f"datasets explain {share:.0%}", (0.7, 0.3, 0.7),
                partial(trained, n=n, each=each, share=share), trained_now, trained_before,
            )  # fmt: skip


def _draw_one(population: Callable[[Generator, tuple[int, ...]], ndarray], n: int, rng: Generator) -> Arrays:
    return (population(rng, (n,)),)


def _draw_units(population: Callable[[Generator, int], Arrays], n: int, rng: Generator) -> Arrays:
    return population(rng, n)


def shared_sides(rng: Generator, n: int) -> Arrays:
    """Draw scores with and without steering, which share what the question does."""
    question = 20 + 20 * rng.normal(size=n)
    return np.clip(question + 15 + 15 * rng.normal(size=n), 0, 100), np.clip(question + 15 * rng.normal(size=n), 0, 100)


def judged_sides(rng: Generator, n: int) -> Arrays:
    """Draw scores with and without steering, apart, both at the ends of the scale."""
    return 100 * rng.beta(0.6, 0.6, n), both_ends(rng, (n,))


def texts(rng: Generator, n: int) -> Arrays:
    """Draw each text's summed loss and number of tokens."""
    lengths = rng.integers(20, 128, n).astype(float)
    return lengths * rng.gamma(20, 3 / 20, n), lengths


# The package's intervals, and the resamples that their percentiles were taken of --------------------------------------


def tensors(data: Arrays) -> list[torch.Tensor]:
    """Convert arrays to what the package takes."""
    return [torch.from_numpy(np.ascontiguousarray(one, dtype=np.float64)) for one in data]


def of_pair(make: Callable[..., Interval], data: Arrays, n_resamples: int, seed: int) -> Sequence[Interval]:
    """Make an interval of two samples."""
    return [make(*tensors(data), n_resamples=n_resamples, seed=seed)]


mean_now = partial(of_pair, bootstrap_mean)
pairs_now = partial(of_pair, bootstrap_paired_difference)
crossed_now = partial(of_pair, mean_over_directions_interval)


def mean_before(data: Arrays, n_resamples: int, seed: int) -> Sequence[Resampled]:
    """Resample a mean."""
    (a,) = data
    return [bootstrap(lambda counts: counts @ a / len(a), (len(a),), n_resamples, LEVEL, seed)]


def pairs_before(data: Arrays, n_resamples: int, seed: int) -> Sequence[Resampled]:
    """Resample a mean difference."""
    return mean_before((data[0] - data[1],), n_resamples, seed)


def ratio_before(data: Arrays, n_resamples: int, seed: int) -> Sequence[Resampled]:
    """Resample a ratio of sums, as capability's perplexity is."""
    totals, lengths = data
    statistic = lambda counts: counts @ totals / (counts @ lengths)  # noqa: E731
    return [bootstrap(statistic, (len(totals),), n_resamples, LEVEL, seed, draw_multinomial)]


def ratio_now(data: Arrays, n_resamples: int, seed: int) -> Sequence[Interval]:
    """Make the interval of a ratio of sums."""
    return [t_interval(found, len(data[0])) for found in ratio_before(data, n_resamples, seed)]


def pearson_before(data: Arrays, n_resamples: int, seed: int) -> Sequence[Resampled]:
    """Resample Pearson's r."""
    x, y = map(standardize, data)
    return [bootstrap(lambda counts: weighted_pearson_r(x, y, counts), (len(x),), n_resamples, LEVEL, seed)]


def spearman_before(data: Arrays, n_resamples: int, seed: int) -> Sequence[Resampled]:
    """Resample Spearman's r."""
    rank_x, rank_y = map(make_ranker, data)

    def correlate(counts: ndarray) -> ndarray:
        return weighted_pearson_r(rank_x(counts), rank_y(counts), counts)

    return [bootstrap(correlate, (len(data[0]),), n_resamples, LEVEL, seed)]


def auroc_before(data: Arrays, n_resamples: int, seed: int) -> Sequence[Resampled]:
    """Resample an AUROC."""
    return [bootstrap(weighted_auroc(*data), (len(data[0]), len(data[1])), n_resamples, LEVEL, seed)]


def groups_now(data: Arrays, n_resamples: int, seed: int) -> Sequence[Interval]:
    """Make the interval of an AUROC whose questions are resampled."""
    n, each = data[0].shape
    labels = np.repeat(np.arange(n), each).tolist()
    positive, negative = (side.flatten() for side in tensors(data))
    return [bootstrap_auroc_by_group(positive, negative, labels, labels, n_resamples=n_resamples, seed=seed)]


def groups_before(data: Arrays, n_resamples: int, seed: int) -> Sequence[Resampled]:
    """Resample an AUROC's questions."""
    n, each = data[0].shape
    separate = weighted_auroc(data[0].ravel(), data[1].ravel())

    def separate_groups(counts: ndarray) -> ndarray:
        weights = np.repeat(counts, each, axis=1)
        return separate(weights, weights)

    return [bootstrap(separate_groups, (n,), n_resamples, LEVEL, seed)]


def crossed_before(data: Arrays, n_resamples: int, seed: int) -> Sequence[Resampled]:
    """Resample the questions of the directions' mean."""
    return mean_before((data[0].mean(axis=0),), n_resamples, seed)


def monitored_now(data: Arrays, n_resamples: int, seed: int) -> Sequence[Interval]:
    """Make monitoring's two intervals."""
    n, n_conditions = data[0].shape
    questions, conditions = ([str(i) for i in side.ravel()] for side in np.indices((n, n_conditions)))
    x, y = (side.flatten() for side in tensors(data))
    found = measure_monitoring(x, y, conditions, questions, n_resamples=n_resamples, seed=seed)
    return [found.overall, found.within]


def monitored_before(data: Arrays, n_resamples: int, seed: int) -> Sequence[Resampled]:
    """Resample monitoring's questions."""
    n, n_conditions = data[0].shape
    x, y = (standardize(side.ravel()) for side in data)
    columns = [[standardize(side[:, c]) for side in data] for c in range(n_conditions)]

    def overall(counts: ndarray) -> ndarray:
        return weighted_pearson_r(x, y, np.repeat(counts, n_conditions, axis=1))

    def within(counts: ndarray) -> ndarray:
        means: ndarray = np.mean([weighted_pearson_r(a, b, counts) for a, b in columns], axis=0)
        return means

    return [bootstrap(statistic, (n,), n_resamples, LEVEL, seed, draw_multinomial) for statistic in (overall, within)]


def trained_now(data: Arrays, n_resamples: int, seed: int) -> Sequence[Interval]:
    """Make the intervals of a correlation, of the difference of two, and of a line one standard deviation out."""
    labels = np.repeat(np.arange(len(data[0])), data[0].shape[1]).tolist()
    shift, other, score = (side.flatten() for side in tensors(data))
    return [
        bootstrap_pearson_r_by_group(shift, score, labels, n_resamples=n_resamples, seed=seed),
        bootstrap_pearson_difference_by_group(shift, other, score, labels, n_resamples=n_resamples, seed=seed),
        *bootstrap_line_by_group(shift, score, labels, torch.ones(1), n_resamples=n_resamples, seed=seed),
    ]


def trained_before(data: Arrays, n_resamples: int, seed: int) -> Sequence[Resampled]:
    """Resample the datasets of a correlation, of the difference of two, and of a line."""
    n, each = data[0].shape
    shift, other, score = (standardize(side.ravel()) for side in data)

    def correlate(side: ndarray, counts: ndarray) -> ndarray:
        return weighted_pearson_r(side, score, np.repeat(counts, each, axis=1))

    def differ(counts: ndarray) -> ndarray:
        difference: ndarray = correlate(shift, counts) - correlate(other, counts)
        return difference

    def rise(counts: ndarray) -> ndarray:
        return line_height(data[0].ravel(), data[2].ravel(), np.repeat(counts, each, axis=1), 1.0)

    statistics = (partial(correlate, shift), differ, rise)
    return [bootstrap(statistic, (n,), n_resamples, LEVEL, seed) for statistic in statistics]


# Simulation and page ----------------------------------------------------------------------------------------------


def simulate(number: int, case: Case, arguments: Arguments) -> list[Coverage]:
    """Draw data, make both intervals, and count; data without a statistic are drawn anew."""
    rng = np.random.default_rng([arguments.seed, 2, number])
    ends: list[list[list[tuple[float, float]]]] = [[[], []] for _ in case.kinds]
    for repetition in range(arguments.repetitions):
        now: Sequence[Interval] = []
        while not now or any(one.is_missing for one in now):
            data = case.draw(rng)
            now = case.now(data, n_resamples=arguments.resamples, seed=repetition)
        before = case.before(data, n_resamples=arguments.resamples, seed=repetition)
        for found, interval, resampled in zip(ends, now, before, strict=True):
            low, high = np.quantile(resampled.values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
            found[0].append((float(low), float(high)))
            found[1].append((interval.low, interval.high))
    rows = []
    for kind, truth, found in zip(case.kinds, case.truth, ends, strict=True):
        covered, widths = [], []
        for pairs in found:
            low, high = np.array(pairs).T
            # A true value that is the estimate but for rounding is held.
            covered.append(float(((low <= truth + 1e-9) & (truth - 1e-9 <= high)).mean()))
            widths.append(float(np.median(high - low)))
        rows.append(Coverage(kind, case.size, case.population, truth, *covered, *widths))
    return rows


def render_table(record: IntervalCoverage) -> str:
    """Render every row."""
    lines = [
        "| interval | size | population | true value | before: holds it | now: holds it | width before | now |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in record.rows:
        now = f"**{row.now:.1%}**" if row.now < GOAL else f"{row.now:.1%}"
        lines.append(
            f"| {row.kind} | {row.size} | {row.population} | {row.truth:.3g} | {row.before:.1%} | {now} | "
            f"{row.width_before:.3g} | {row.width_now:.3g} |"
        )
    return "\n".join(lines) + "\n"


def render_summary(record: IntervalCoverage) -> str:
    """Render the range of each kind, and say what stays under the goal."""
    lines = [
        "| interval | before: lowest to highest | now: lowest to highest | rows under 93 % now |",
        "|---|---|---|---|",
    ]
    for kind in dict.fromkeys(row.kind for row in record.rows):
        rows = [row for row in record.rows if row.kind == kind]
        before, now = [row.before for row in rows], [row.now for row in rows]
        n_short = sum(share < GOAL for share in now)
        lines.append(
            f"| {kind} | {min(before):.1%} to {max(before):.1%} | {min(now):.1%} to {max(now):.1%} | "
            f"{n_short} of {len(rows)} |"
        )
    short = [row for row in record.rows if row.now < GOAL]
    listed = [f"- {row.kind}, {row.size}, {row.population}: {row.now:.1%} (before: {row.before:.1%})" for row in short]
    words = ["Under 93 % now:", "", *listed] if short else ["No row is under 93 % now."]
    return "\n".join([*lines, "", *words, ""])


def fill_page(page: str, record: IntervalCoverage) -> str:
    """Put the generated parts between their marks."""
    words = f"{record.repetitions} data sets a row, {record.resamples} resamples an interval.\n"
    for name, part in (("summary", render_summary(record)), ("rows", render_table(record)), ("settings", words)):
        start, end = (mark.format(name) for mark in MARKS)
        head, _, rest = page.partition(start)
        page = head + start + part + end + rest.partition(end)[2]
    return page


def main(arguments: Arguments) -> None:
    """Simulate every case; write the record and the page."""
    cases = list(list_cases(arguments.seed))
    rows = [row for number, case in enumerate(tqdm(cases, desc="cases")) for row in simulate(number, case, arguments)]
    record = IntervalCoverage(
        tuple(rows), arguments.repetitions, arguments.resamples, arguments.seed, collect_versions()
    )
    record.save(arguments.out / "interval_coverage.json")
    page = arguments.out / "intervals.md"
    if page.exists():
        page.write_text(fill_page(page.read_text(encoding="utf-8"), record), encoding="utf-8")
    print(render_summary(record))
    print(render_table(record))


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
