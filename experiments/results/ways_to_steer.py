"""Ways to find a direction × ways to act with it, side by side at equal coherence and at equal divergence."""

from __future__ import annotations

import html
from dataclasses import dataclass
from statistics import geometric_mean
from typing import Literal, TypeAlias

import plotly.graph_objects as go
import torch
from jaxtyping import Float
from plotly.subplots import make_subplots
from torch import Tensor

from persona_lens.evaluation.capability import Capability
from persona_lens.evaluation.conditions import ConditionScores
from persona_lens.judges.validation import JudgeValidation
from persona_lens.plots.style import COLORS, GREY, INK, SYMBOLS, add_intervals, add_points, lay_out
from persona_lens.records import Record
from persona_lens.reproduction.figures import Result
from persona_lens.reproduction.ways import Strength
from persona_lens.statistics import Interval
from persona_lens.statistics.crossed import mean_over_directions_interval
from persona_lens.statistics.missing import mean_interval

BASELINE = "mean difference, add"
PROMPT = "system prompt"
UNSTEERED = "unsteered"
RANDOM = "random direction"
Equal: TypeAlias = Literal["coherence", "divergence"]
_EQUALS: tuple[Equal, ...] = ("coherence", "divergence")


@dataclass(frozen=True)
class TriedWay(Record):
    """One way's strengths.

    Args:
        estimator: What found the direction.
        intervention: What is done with it.
        levels: Strengths that cost set divergences, at which its coherence was tried.
        at_coherence: The strength that was to leave a set coherence.
        at_divergence: That of a set divergence.
    """

    estimator: str
    intervention: str
    levels: tuple[Strength, ...]
    at_coherence: Strength
    at_divergence: Strength

    @property
    def name(self) -> str:
        """Both in one text."""
        return f"{self.estimator}, {self.intervention}"


@dataclass(frozen=True, eq=False, repr=False)
class TraitWays(Record):
    """All ways for one trait.

    Args:
        trait: Its name.
        layer: Where the residual stream is changed.
        validations: Of the judges.
        ways: Those that were tried.
        trials: Every way at every level, on the questions that set the strengths; without the texts.
        trial_scores: By judge, the scores of these.
        responses: Unsteered, under the system prompt, and every way at equal coherence, then at equal divergence; on
            questions that set nothing.
        scores: By judge, the scores of these.
        others: By another trait, what the judge of another model says of the same responses.
        capabilities: By condition, for some ways at equal coherence, and unsteered.
    """

    trait: str
    layer: int
    validations: tuple[JudgeValidation, ...]
    ways: tuple[TriedWay, ...]
    trials: ConditionScores
    trial_scores: dict[str, Float[Tensor, "trial question rollout"]]
    responses: ConditionScores
    scores: dict[str, Float[Tensor, "condition question rollout"]]
    others: dict[str, Float[Tensor, "condition question rollout"]]
    capabilities: dict[str, Capability]

    def rises(self, judge: int, way: str, equal: Equal) -> Float[Tensor, " question"]:
        """Return how many points a condition scores above the unsteered model, by question."""
        scores = list(self.scores.values())[judge].nanmean(dim=-1)
        return scores[self.find(way, equal)] - scores[self.responses.conditions.index(UNSTEERED)]

    def find(self, way: str, equal: Equal) -> int:
        """Return a condition's place."""
        return self.responses.conditions.index(way if way in (UNSTEERED, PROMPT) else f"{way}, equal {equal}")

    def spread(self, way: str, equal: Equal) -> float:
        """Return the mean distance, over the other traits, that their scores move."""
        moved = [
            float((one[self.find(way, equal)] - one[self.responses.conditions.index(UNSTEERED)]).nanmean().abs())
            for one in self.others.values()
        ]
        return sum(moved) / len(moved)


@dataclass(frozen=True, eq=False, repr=False)
class WaysToSteer(Result):
    """What experiments/ways_to_steer.py finds."""

    traits: tuple[TraitWays, ...]

    @property
    def judges(self) -> dict[str, str]:
        """The judge of another model, of each trait."""
        return {one.trait: one.validations[1].judge for one in self.traits}

    @property
    def judge_names(self) -> tuple[str, ...]:
        """The two judges."""
        return tuple(one.judge for one in self.traits[0].validations[:2])

    @property
    def ways(self) -> tuple[str, ...]:
        """The names of the ways that every trait has, random directions left out."""
        shared = [{way.name for way in one.ways} for one in self.traits]
        names = [way.name for way in self.traits[0].ways if not way.estimator.startswith(RANDOM)]
        return tuple(name for name in names if all(name in one for one in shared))

    def rises(self, judge: int, way: str, equal: Equal) -> Float[Tensor, " question"]:
        """Return the rise of every question of every trait: the units of all intervals."""
        return torch.cat([one.rises(judge, way, equal) for one in self.traits])

    def rise(self, judge: int, way: str, equal: Equal) -> Interval:
        """Return how many points a way raises the score by, over the questions of all traits."""
        return mean_interval(self.rises(judge, way, equal))

    def random_rise(self, judge: int, equal: Equal) -> Interval:
        """Return the rise under random directions, over directions and questions."""
        names = [way.name for way in self.traits[0].ways if way.estimator.startswith(RANDOM)]
        return mean_over_directions_interval(torch.stack([self.rises(judge, name, equal) for name in names]))

    def above(self, judge: int, way: str, other: str, equal: Equal) -> Interval:
        """Return how many points a way rises more than another, paired by question."""
        return mean_interval(self.rises(judge, way, equal) - self.rises(judge, other, equal))

    def compare(self, other: str, equal: Equal) -> tuple[list[str], list[str]]:
        """Return the ways that both judges see surely above another way, and those surely below it.

        The system prompt is none of them: nothing sets how strong it is.
        """
        better, worse = [], []
        for way in self.ways:
            if way == other:
                continue
            found = [self.above(judge, way, other, equal) for judge in (0, 1)]
            if all(one.low > 0 for one in found):
                better.append(way)
            elif all(one.high < 0 for one in found):
                worse.append(way)
        return better, worse

    def say_verdict(self) -> str:
        """Say which way to use, by what both judges see at equal coherence and at equal divergence."""
        found = [[_list_names(ways) for ways in self.compare(BASELINE, equal)] for equal in _EQUALS]
        better, worse = ([f"{ways[side]} at equal {equal}" for ways, equal in zip(found, _EQUALS, strict=True)]
                         for side in (0, 1))  # fmt: skip
        return (
            f"of {len(self.ways) - 1} ways, better than adding the mean difference, for both judges (intervals "
            f"uncorrected, and without the noise of setting strengths): {', '.join(better)}; worse: {', '.join(worse)}"
        )

    def say_better(self) -> list[str]:
        """Say by how much each better way rises more than adding the mean difference, a line a way and trait."""
        said = []
        for equal in _EQUALS:
            for way in self.compare(BASELINE, equal)[0]:
                for one in self.traits:
                    more = [
                        mean_interval(one.rises(judge, way, equal) - one.rises(judge, BASELINE, equal))
                        for judge in (0, 1)
                    ]
                    coherence = [
                        float(one.responses.coherence_by_question[one.find(name, equal)].nanmean())
                        for name in (way, BASELINE)
                    ]
                    said.append(
                        f"- {way} less mean difference, add, at equal {equal}, {one.trait}: {more[0]:.0f} and "
                        f"{more[1]:.0f} points; coherence {coherence[0]:.0f} against {coherence[1]:.0f}"
                    )
        return said

    def say_counts(self) -> str:
        """Say in a line how many ways both judges see do better than adding the mean difference."""
        better = {equal: len(self.compare(BASELINE, equal)[0]) for equal in _EQUALS}
        counts = " and ".join(f"{n or 'none'} at equal {equal}" for equal, n in better.items())
        return f"of {len(self.ways) - 1} ways, better than adding the mean difference for both judges: {counts}"

    def list_figures(self) -> dict[str, go.Figure]:
        """Draw the comparison, and the front of trait against coherence."""
        return {"": self.plot(), "_front": self.plot_front()}

    def plot(self) -> go.Figure:
        """Draw every way's rise, by judge, at equal coherence and at equal divergence."""
        heads = [f"{html.escape(judge)}<br>at equal {equal}" for equal in _EQUALS for judge in self.judge_names]
        figure = make_subplots(
            rows=2, cols=2, shared_yaxes=True, horizontal_spacing=0.03, vertical_spacing=0.12, subplot_titles=heads
        )
        pairs = [(way.name, way.estimator, way.intervention) for way in self.traits[0].ways if way.name in self.ways]
        estimators = list(dict.fromkeys(estimator for _, estimator, _ in pairs))
        interventions = list(dict.fromkeys(intervention for *_, intervention in pairs))
        rows = [*estimators, RANDOM, PROMPT][::-1]
        for line, equal in enumerate(_EQUALS, start=1):
            for judge in (0, 1):
                for index, intervention in enumerate(interventions):
                    shown = [(estimator, way) for way, estimator, one in pairs if one == intervention]
                    offset = 0.16 * ((len(interventions) - 1) / 2 - index)
                    places = [rows.index(estimator) + offset for estimator, _ in shown]
                    found = [self.rise(judge, way, equal) for _, way in shown]
                    look = COLORS[index % len(COLORS)], SYMBOLS[index % len(SYMBOLS)]
                    add_intervals(figure, judge + 1, places, found, *look, intervention, line=line)
                    figure.data[-1].update(legendgroup=intervention, showlegend=line == 1 and judge == 0)
                    figure.data[-1].marker.update(size=8)
                for name, value in (
                    (RANDOM, self.random_rise(judge, equal)),
                    (PROMPT, self.rise(judge, PROMPT, equal)),
                ):
                    add_intervals(figure, judge + 1, [rows.index(name)], [value], GREY, "line-ns-open", name, line=line)
                    figure.data[-1].update(showlegend=False)
                figure.add_vline(0, line={"color": INK, "width": 1}, row=line, col=judge + 1)
        figure.update_yaxes(tickvals=list(range(len(rows))), ticktext=rows, range=[-0.6, len(rows) - 0.3])
        figure.update_xaxes(title_text="points above unsteered (0–100)", row=2)
        names = ", ".join(one.trait for one in self.traits)
        subtitle = (
            f"{self.model_name}, layer {self.traits[0].layer}: {names}, equally weighed; bars: 95 % over "
            f"{len(self.rises(0, BASELINE, 'coherence'))} questions (random: over directions too), "
            "uncorrected for their number"
        )
        lay_out(figure, self.say_counts(), subtitle, width=1150, height=1250, bottom=110, legend=-0.08)
        figure.update_layout(margin={"l": 220})
        return figure

    def plot_front(self) -> go.Figure:
        """Draw how far each way raises the traits against coherence, over its levels: estimators above, acts below."""
        kinds = ("estimators, added", "the mean difference, ways to act")
        figure = make_subplots(
            rows=2, cols=2, shared_yaxes=True, horizontal_spacing=0.03, vertical_spacing=0.12,
            subplot_titles=[f"{what}<br>{html.escape(judge)}" for what in kinds for judge in self.judge_names],
        )  # fmt: skip
        for line, keep in enumerate(("add", "mean difference"), start=1):
            ways = [way for way in self.traits[0].ways if keep in (way.estimator, way.intervention)]
            for index, way in enumerate(ways):
                label = way.estimator if line == 1 else way.intervention
                color = GREY if way.estimator.startswith(RANDOM) else COLORS[index % len(COLORS)]
                label = RANDOM if way.estimator.startswith(RANDOM) else label
                look = {
                    "mode": "lines+markers",
                    "line": {"color": color, "width": 1.5, "dash": "dot" if index >= len(COLORS) else "solid"},
                    "marker": {"symbol": SYMBOLS[index % len(SYMBOLS)], "size": 8, "color": color},
                }
                for judge in (0, 1):
                    x, y = self._trace_front(judge, way)
                    first = not any(trace.name == html.escape(label) for trace in figure.data)
                    add_points(
                        figure, line, judge + 1, x, y, label, look, in_legend=first, bars={"thickness": 0.4, "width": 0}
                    )
        figure.update_xaxes(title_text="coherence (0–100)", row=2)
        figure.update_yaxes(title_text="points above unsteered", col=1)
        subtitle = (
            f"{self.model_name}; mean of {', '.join(one.trait for one in self.traits)}; from the unsteered model (0 "
            "points) on, rising strengths, on the questions that set them; bars: 95 % over questions"
        )
        title = f"what a trait costs in coherence; {self.say_counts()}"
        lay_out(figure, title, subtitle, width=1150, height=1050, bottom=150, legend=-0.09)
        return figure

    def _trace_front(self, judge: int, way: TriedWay) -> tuple[list[float], list[Interval]]:
        """Return coherence, and points above unsteered, of the unsteered model and of a way's levels, over traits."""
        coherences, rises = [], []
        for one in self.traits:
            scores = list(one.trial_scores.values())[judge].nanmean(dim=-1)
            rows = [0, *(one.trials.conditions.index(f"{way.name}, level {level}") for level in range(len(way.levels)))]
            coherences.append(one.trials.coherence_by_question[rows].nanmean(dim=1))
            rises.append(scores[rows] - scores[0])
        return (torch.stack(coherences).mean(dim=0).tolist(), [mean_interval(row) for row in torch.cat(rises, dim=1)])

    def to_markdown(self) -> str:
        """Write the verdict and the table: rise by judge, coherence, other traits, capability."""
        first, second = (html.escape(one) for one in self.judge_names)
        lines = [
            f"**{self.say_verdict()[0].upper()}{self.say_verdict()[1:]}.**", "",
            "![Every way at equal coherence and equal divergence](../../figures/ways_to_steer.png)", "",
            "![Trait against coherence](../../figures/ways_to_steer_front.png)", "",
            f"How far the score rises, of 100, averaged over the traits, 95 % over questions. First judge: {first}; "
            f"second: {second}. The last four columns are at equal coherence.", "",
            "| way | equal coherence, first judge | second | equal KL, first judge | second | "
            "coherence | other traits move by | perplexity | accuracy |",
            "|---|---|---|---|---|---|---|---|---|",
        ]  # fmt: skip
        for way in (*self.ways, PROMPT):
            cells = [f"{self.rise(judge, way, equal):.0f}" for equal in _EQUALS for judge in (0, 1)]
            coherence = torch.cat(
                [one.responses.coherence_by_question[one.find(way, "coherence")] for one in self.traits]
            )
            spread = sum(one.spread(way, "coherence") for one in self.traits) / len(self.traits)
            cells += [
                f"{mean_interval(coherence):.0f}",
                f"{spread:.0f}",
                self._say_perplexity(way),
                self._say_accuracy(way),
            ]
            lines.append(f"| {way} | {' | '.join(cells)} |")
        rest = [f"{self.random_rise(judge, equal):.0f}" for equal in _EQUALS for judge in (0, 1)]
        lines.append(f"| {RANDOM}s, add | {' | '.join(rest)} | – | – | – | – |")
        coherence = torch.cat(
            [one.responses.coherence_by_question[one.find(UNSTEERED, "coherence")] for one in self.traits]
        )
        lines.append(
            f"| unsteered | 0 | 0 | 0 | 0 | {mean_interval(coherence):.0f} | 0 | × 1.00 | "
            f"{self._say_accuracy(UNSTEERED)} |"
        )
        return "\n".join([*lines, "", *self._say_best(), "", *self.say_better(), ""])

    def _say_accuracy(self, way: str) -> str:
        """Return the mean accuracy over traits, where it was measured."""
        found = [one.capabilities[way].accuracy.estimate for one in self.traits if way in one.capabilities]
        return f"{100 * sum(found) / len(found):.0f} %" if found else "–"

    def _say_perplexity(self, way: str) -> str:
        """Return the geometric mean, over traits, of ordinary text's perplexity as a multiple of the unsteered."""
        ratios = [
            one.capabilities[way].perplexity.estimate / one.capabilities[UNSTEERED].perplexity.estimate
            for one in self.traits
            if way in one.capabilities
        ]
        return f"× {geometric_mean(ratios):.2f}" if ratios else "–"

    def _say_best(self) -> tuple[str, ...]:
        """Say what beats the prompt and random directions."""
        above_prompt, below_prompt = self.compare(PROMPT, "coherence")
        above, below = (_list_names(ways) for ways in (above_prompt, below_prompt))
        return (
            f"Above the system prompt, surely and for both judges, at equal coherence: {above}; below it: {below}.",
        )


def _list_names(ways: list[str]) -> str:
    """List ways, whose names hold commas."""
    return " / ".join(ways) or "none"
