"""Training on the real conversations that are highest, lowest or nowhere in particular in projection difference."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go
import torch
from jaxtyping import Float
from plotly.subplots import make_subplots
from torch import Tensor

from persona_lens.plots.style import COLORS, GREY, INK, add_intervals, lay_out, say
from persona_lens.records import Record
from persona_lens.reproduction.figures import Result
from persona_lens.screening.screening import ApproximationCheck
from persona_lens.statistics import Interval
from persona_lens.statistics.crossed import mean_over_directions_interval
from results.two_judges import (
    Pair,
    add_pairs,
    falls,
    find_verdicts,
    join,
    name_places,
    rises,
    say_which,
    show_legend_once,
)

HIGH, RANDOM, LOW = "high ΔP", "random", "low ΔP"
FILTERED, RANDOM_FILTERED = "high ΔP, filtered", "random, filtered"
"""Of the half of the answers that the first judge scores lowest: what a filter by that judge would let through."""
BASE = "base model"
SUBSETS = (HIGH, RANDOM, LOW, FILTERED, RANDOM_FILTERED)
# With what random rows a subset is compared.
_FLOORS = {HIGH: RANDOM, FILTERED: RANDOM_FILTERED}
# What is set against what, the first less the second.
PAIRS = (
    (HIGH, RANDOM), (HIGH, BASE), (HIGH, LOW), (LOW, RANDOM), (RANDOM, BASE), (FILTERED, RANDOM_FILTERED),
    (FILTERED, BASE),
)  # fmt: skip


@dataclass(frozen=True, repr=False)
class TrainedModel(Record):
    """A training.

    Args:
        trait: By whose ΔP its rows were chosen; empty of random rows, whose model is measured for every trait.
        subset: Which rows.
        seed: Of part, adapter, order and answers.
        n_rows: Rows trained on.
        left_out: Rows left out, by reason.
        losses: Of each optimiser step.
        core_seconds: What it took of the processor; None where it went on after it had been broken off.
    """

    trait: str
    subset: str
    seed: int
    n_rows: int
    left_out: dict[str, int]
    losses: tuple[float, ...]
    core_seconds: float | None


@dataclass(frozen=True, eq=False, repr=False)
class MeasuredModel(Record):
    """What a model says and where it lies, for one trait.

    Args:
        subset: What it was trained on; ``base model`` before training.
        seed: As that of the training.
        scores: Of its answers.
        coherence: Of its answers, 0 to 100.
        shift: Of its prompts along the trait's vector, from the base model, in residual-stream units.
        core_seconds: What measuring it took of the processor.
    """

    subset: str
    seed: int
    scores: Float[Tensor, "judge question"]
    coherence: Float[Tensor, " question"]
    shift: Float[Tensor, " question"]
    core_seconds: float


@dataclass(frozen=True, repr=False)
class ChosenRows(Record):
    """Rows of one seed that a model was trained on, in means.

    Args:
        subset: Which rows.
        seed: Whose.
        delta: ΔP for the trait.
        scores: Both judges', of the answers.
        n_tokens: Of the answers.
        share_cut: How many of the answers go on beyond what was trained on.
    """

    subset: str
    seed: int
    delta: float
    scores: tuple[float, float]
    n_tokens: float
    share_cut: float


@dataclass(frozen=True, repr=False)
class TraitConversations(Record):
    """One trait.

    Args:
        trait: Its name.
        judge_names: Its two judges.
        approximations: ΔP of all that was scored, and how near cheaper ways come to it.
        agreement: Correlation of ΔP with each judge's score, over the pool.
        with_length: Correlation of ΔP with the answer's tokens, over the pool.
        chosen: What was trained on.
        measured: The base model and every trained one, with every seed.
    """

    trait: str
    judge_names: tuple[str, str]
    approximations: ApproximationCheck
    agreement: Pair
    with_length: Interval
    chosen: tuple[ChosenRows, ...]
    measured: tuple[MeasuredModel, ...]

    @property
    def subsets(self) -> tuple[str, ...]:
        """Those that models were trained on, the base model first."""
        return tuple(dict.fromkeys(one.subset for one in self.measured))

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """What is set against what."""
        return [pair for pair in PAIRS if {*pair} <= {*self.subsets}]

    @property
    def n_questions(self) -> int:
        """How many each model was asked."""
        return self.measured[0].scores.shape[-1]

    def score(self, subset: str) -> Pair:
        """Return a subset's mean score, over seeds and questions."""
        first, second = map(mean_over_directions_interval, self._stack(subset, "scores").unbind(1))
        return first, second

    def more(self, one: str, other: str) -> Pair:
        """Return how many points the one scores above the other, paired by seed and question."""
        differences = self._stack(one, "scores") - self._stack(other, "scores")
        first, second = map(mean_over_directions_interval, differences.unbind(1))
        return first, second

    def measure(self, name: str, one: str, other: str | None = None) -> Interval:
        """Return a subset's mean coherence or shift, or how much it is above another's."""
        values = self._stack(one, name)
        return mean_over_directions_interval(values if other is None else values - self._stack(other, name))

    def find_rows(self, subset: str) -> list[ChosenRows]:
        """Return what was trained on, a seed each."""
        return [one for one in self.chosen if one.subset == subset]

    def raises(self, subset: str) -> bool:
        """Whether both judges surely see more of the trait than after random rows, and than before training."""
        return rises(self.more(subset, _FLOORS[subset])) and rises(self.more(subset, BASE))

    def say_where(self) -> str:
        """Say where the score after rows high in ΔP surely lies for both judges; nothing where it is not sure."""
        words = []
        for other, name in ((RANDOM, "random ones"), (BASE, "the base model")):
            pair = self.more(HIGH, other)
            words += [f"above {name}"] if rises(pair) else [f"below {name}"] if falls(pair) else []
        return ", ".join(words)

    def _stack(self, subset: str, name: str) -> Float[Tensor, "seed ..."]:
        return torch.stack([getattr(one, name) for one in self.measured if one.subset == subset])


@dataclass(frozen=True, eq=False, repr=False)
class RealConversations(Result):
    """What experiments/real_conversations.py finds, without any text of the conversations.

    Args:
        layer: Zero-based block index of every projection.
        whole_file: Rows of the file by what they are; None of a dataset that is no file.
        counts: Rows that were read, by what became of them.
        n_cut: Scored rows whose answer goes on beyond what was projected and trained on.
        n_without_base: Scored rows without ΔP, as the model says nothing itself.
        n_pool: Rows with ΔP, which are shared out among the seeds.
        n_part: Rows of each seed.
        n_related: Rows of which another seed has a piece of the same conversation, or the same text.
        n_broken: Answers that were cut within a character.
        max_prompt_tokens: Rows with longer prompts are not scored.
        max_answer_tokens: Where answers end.
        mean_tokens: Of scored rows' prompts and answers.
        bytes: Of the scored rows on disk.
        screening_seconds: Seconds of one core that screening took; None where it went on after it had been broken off.
        judging_seconds: What both judges took for the pool, for all traits.
        traits: What was found of each.
        trainings: Every training.
    """

    _version = 2

    layer: int
    whole_file: dict[str, int] | None
    counts: dict[str, int]
    n_cut: int
    n_without_base: int
    n_pool: int
    n_part: int
    n_related: int
    n_broken: int
    max_prompt_tokens: int
    max_answer_tokens: int
    mean_tokens: dict[str, float]
    bytes: int
    screening_seconds: float | None
    judging_seconds: float
    traits: tuple[TraitConversations, ...]
    trainings: tuple[TrainedModel, ...]

    @property
    def judges(self) -> dict[str, str]:
        """By trait, the judge that says most: the valid one where there is one."""
        return {one.trait: min(one.judge_names, key=lambda name: ", valid" not in name) for one in self.traits}

    @property
    def n_read(self) -> int:
        """Rows that were read."""
        return sum(self.counts.values())

    @property
    def seeds(self) -> tuple[int, ...]:
        """Those of the trainings."""
        return tuple(dict.fromkeys(one.seed for one in self.trainings))

    @property
    def has_filter(self) -> bool:
        """Whether models were trained on what a judge lets through, too."""
        return FILTERED in self.traits[0].subsets

    def say_finding(self) -> str:
        """Say which traits the rows highest in ΔP surely raise above random ones and the base model."""
        n = len(self.traits)
        raised = [one.trait for one in self.traits if one.raises(HIGH)]
        said = [
            "real conversations highest in ΔP, trained on, surely raise a trait above random ones and the base model "
            f"for both judges: {say_which(raised, n)}"
        ]
        elsewhere: dict[str, list[str]] = {}
        for one in self.traits:
            if not one.raises(HIGH) and one.say_where():
                elsewhere.setdefault(one.say_where(), []).append(one.trait)
        said += [f"surely {where}: {join(names)}" for where, names in elsewhere.items()]
        if self.has_filter:
            filtered = [one.trait for one in self.traits if one.raises(FILTERED)]
            said.append(f"the highest of what a judge lets through: {say_which(filtered, n)}")
        further = {
            other: [one.trait for one in self.traits if one.measure("shift", HIGH, other).low > 0]
            for other in (RANDOM, BASE)
        }
        said.append(
            f"along the vector they surely lead further than random ones for {say_which(further[RANDOM], n)}, than the "
            f"base model for {say_which(further[BASE], n)}"
        )
        return "; ".join(said)

    def plot(self) -> go.Figure:
        """Draw scores by subset, their differences, coherence and shift, a column a trait.

        Figure 10 of the paper; bars are 95 % over seeds and questions.
        """
        parts = ("", ": differences", ": coherence", ": shift along its vector")
        heads = [f"{html.escape(one.trait)}{part}" for part in parts for one in self.traits]
        n = len(self.traits)
        figure = make_subplots(
            rows=4, cols=n, subplot_titles=heads, horizontal_spacing=0.03, vertical_spacing=0.07,
            row_heights=[0.25, 0.31, 0.22, 0.22],
        )  # fmt: skip
        pairs = self.traits[0].pairs
        differences = [" − ".join(pair) for pair in pairs]
        for column, one in enumerate(self.traits, start=1):
            names = one.subsets
            add_pairs(figure, 1, column, names, [one.score(name) for name in names], zero=False)
            add_pairs(figure, 2, column, differences, [one.more(*pair) for pair in pairs])
            places = list(range(len(names)))[::-1]
            for line, (name, color, symbol) in enumerate(
                (("coherence", GREY, "square"), ("shift", COLORS[5], "triangle-up")), start=3
            ):
                add_intervals(figure, column, places, [one.measure(name, each) for each in names], color, symbol, name,
                              line=line)  # fmt: skip
            figure.add_vline(x=0, line={"color": INK, "width": 1}, row=4, col=column)
            for line, labels in ((1, names), (2, differences), (3, names), (4, names)):
                name_places(figure, line, column, labels if column == 1 else [""] * len(labels))
            for line, label in enumerate(("trait score (0–100)", "points (0–100)", "coherence (0–100)",
                                          "residual-stream units"), start=1):  # fmt: skip
                figure.update_xaxes(title={"text": label, "standoff": 2}, row=line, col=column)
            for line in (1, 3):
                figure.update_xaxes(range=[-3, 103], row=line, col=column)
        show_legend_once(figure)
        n_rows = min(one.n_rows for one in self.trainings)
        verdicts = "; ".join(f"{one.trait} {find_verdicts(one.judge_names, one.trait)}" for one in self.traits)
        filtered = "filtered: of the half that the first judge scores lowest; " if self.has_filter else ""
        subtitle = (
            f"{self.model_name}; {self.n_pool} rows of {html.escape(self.config['data'])}, shared out among "
            f"{len(self.seeds)} seeds, {self.n_part} each; at least {n_rows} rows in each training, answers cut at "
            f"{self.max_answer_tokens} tokens; {self.traits[0].n_questions} questions; ΔP at layer {self.layer}; "
            f"{filtered}judges, first and second: {html.escape(verdicts)}; bars: 95 % over seeds and questions; sure: "
            "above random ones and above the base model, for both judges, uncorrected for the number of traits"
        )
        title = html.escape(self.say_finding()).replace("; ", ";<br>")
        lay_out(figure, title, subtitle, width=1250, height=1350, bottom=110, legend=-0.06)
        figure.update_layout(margin={"l": 210}, title={"font": {"size": 15}})
        return figure

    def to_markdown(self) -> str:
        """Write what was read and screened, how ΔP agrees with the judges, and what training on subsets does."""
        finding = self.say_finding()
        lines = [f"**{finding[0].upper()}{finding[1:]}.**", "", self._say_pool(), "",
                 "| trait | first judge | second judge | r of ΔP with the first judge's score, by row | with the "
                 "second's | with the answer's tokens |", "|---|---|---|---|---|---|"]  # fmt: skip
        for one in self.traits:
            cells = [*one.judge_names, *map(say, (*one.agreement, one.with_length))]
            lines.append(f"| {one.trait} | {' | '.join(cells)} |")
        lines += ["", f"| trait | ΔP | of {self.traits[0].approximations.n_subset} at random | last prompt token | r "
                  "with ΔP by sample: last prompt token | raw projection |", "|---|---|---|---|---|---|"]  # fmt: skip
        for one in self.traits:
            near = one.approximations
            cells = [f"{each:.1f}" for each in (near.exact, near.subset, near.last_prompt)]
            lines.append(f"| {one.trait} | {' | '.join([*cells, say(near.r_last_prompt), say(near.r_raw)])} |")
        lines += [
            "", "| trait | trained on | ΔP of the rows | first judge's score of them | second's | tokens of an answer "
            "| of answers cut | score after, first judge | second | coherence | shift |", f"{'|---' * 11}|",
        ]  # fmt: skip
        for one in self.traits:
            for subset in one.subsets:
                cells = [*_average(one.find_rows(subset)), *(f"{each:.0f}" for each in one.score(subset))]
                cells += [f"{one.measure('coherence', subset):.0f}"]
                cells += ["–" if subset == BASE else f"{one.measure('shift', subset):.1f}"]
                lines.append(f"| {one.trait} | {subset} | {' | '.join(cells)} |")
        lines += ["", "| trait | the one less the other | first judge | second judge | coherence | shift |",
                  "|---|---|---|---|---|---|"]  # fmt: skip
        for one in self.traits:
            for pair in one.pairs:
                cells = [f"{each:.1f}" for each in (*one.more(*pair), one.measure("coherence", *pair),
                                                    one.measure("shift", *pair))]  # fmt: skip
                lines.append(f"| {one.trait} | {' − '.join(pair)} | {' | '.join(cells)} |")
        return "\n".join(
            [*lines, "", self._say_compute(), "", "![Real conversations](../../figures/real_conversations.png)", ""]
        )

    def _say_pool(self) -> str:
        """Say how much was read, scored, cut and shared out."""
        whole = ""
        if self.whole_file is not None:
            counts = {reason: n for reason, n in self.whole_file.items() if reason != "cut off"}
            whole = f"The file: {sum(counts.values()):,} whole rows, {counts['good']:,} of them usable conversations. "
        n_scored = self.counts["scored"]
        others = ", ".join(f"{reason} {n}" for reason, n in self.counts.items() if reason != "scored")
        speed = ""
        if self.screening_seconds is not None:
            rate = n_scored / self.screening_seconds
            speed = f", {rate:.2f} conversations a second of one core for {len(self.traits)} traits"
        n_rows = max(one.n_rows for one in self.trainings)
        share, related = n_rows / self.n_part, self.n_related / self.n_pool
        return (
            f"{whole}Of the first {self.n_read:,} rows {n_scored} ({n_scored / self.n_read:.0%}) were scored, at layer "
            f"{self.layer}{speed}; not scored: {others or 'none'}. A prompt may have {self.max_prompt_tokens} tokens, "
            f"the chat template's among them. The answer was cut at {self.max_answer_tokens} tokens in {self.n_cut} "
            f"rows ({self.n_cut / n_scored:.0%}), within a character in {self.n_broken}; in {self.n_without_base} the "
            f"model says nothing itself, so that there is no ΔP. The other {self.n_pool} are shared out: each of "
            f"{len(self.seeds)} seeds has {self.n_part} and trains on {n_rows} of them ({share:.0%}, so that as large "
            f"a share of the random rows is among the highest by chance). Of {self.n_related} rows ({related:.0%}) "
            "another seed has a piece of the same conversation, or the same text."
        )

    def _say_compute(self) -> str:
        """Say what all of it took, and what it grows with."""
        trained = [one.core_seconds for one in self.trainings if one.core_seconds is not None]
        measured = [model.core_seconds for one in self.traits for model in one.measured]
        n_scored = self.counts["scored"]
        screening = f"{(self.screening_seconds or 0) / 60:.0f} to screen {n_scored} rows"
        if self.screening_seconds is None:
            screening = f"not measured to screen {n_scored} rows, as that was broken off"
        total = ((self.screening_seconds or 0) + self.judging_seconds + sum(trained) + sum(measured)) / 60
        return (
            f"Compute: {total:.0f} core-minutes for one model: {screening}, "
            f"{self.judging_seconds / 60:.0f} to judge {self.n_pool}, {len(self.trainings)} trainings of "
            f"{_mean(trained):.0f} core-seconds each, {len(measured)} measurements of "
            f"{sum(measured) / len(measured):.0f}. Screening grows with rows × tokens and serves all traits, judging "
            "likewise; random rows are trained on once for all traits, so that trainings grow with seeds × "
            "(1 + traits × other subsets) × rows, measurements with seeds × traits × subsets × questions × tokens of "
            "an answer."
        )


def _average(rows: Sequence[ChosenRows]) -> list[str]:
    """Write rows' means over seeds; nothing of the base model's."""
    if not rows:
        return ["–"] * 5
    means = [_mean([one.delta for one in rows])]
    means += [_mean([one.scores[judge] for one in rows]) for judge in (0, 1)]
    means.append(_mean([one.n_tokens for one in rows]))
    return [*(f"{one:.1f}" for one in means), f"{_mean([one.share_cut for one in rows]):.0%}"]


def _mean(values: Sequence[float]) -> float:
    """Average what is there; NaN where nothing is."""
    there = [value for value in values if value == value]
    return sum(there) / len(there) if there else float("nan")
