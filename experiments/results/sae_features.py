"""What is in a vector: words, sums of token directions, features of an autoencoder, and what those do by themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go
import torch
from jaxtyping import Float
from plotly.subplots import make_subplots
from torch import Tensor

from persona_lens.evaluation.conditions import ConditionScores
from persona_lens.judges.validation import JudgeValidation
from persona_lens.plots.style import COLORS, GREY, INK, SYMBOLS, add_points, lay_out
from persona_lens.records import Record
from persona_lens.reproduction.figures import Result
from persona_lens.statistics import Interval, bootstrap_spearman_r, mean_over_directions_interval
from persona_lens.statistics.missing import mean_interval
from persona_lens.vectors.contents.features import DecompositionCheck, FeatureCosine
from persona_lens.vectors.contents.reconstruction import Reconstruction
from persona_lens.vectors.contents.sparse_sums import SparseSum
from persona_lens.vectors.contents.words import JacobianWords
from persona_lens.vectors.quality.unembedding import Unembedding

UNSTEERED, VECTOR, FEATURES = "unsteered", "the vector", "nearest features"
RANDOM_FEATURES, RANDOM, SHUFFLED = "random features", "random directions", "shuffled labels"
_EQUAL = 5.0  # points of coherence, of 100, within which texts count as equally coherent
KINDS = (VECTOR, FEATURES, RANDOM_FEATURES, RANDOM)
_TRAIT_COLORS = (COLORS[3], COLORS[2], COLORS[5], COLORS[4])


@dataclass(frozen=True, eq=False)
class TraitContents(Record):
    """One trait's vector, taken apart.

    ``null_explained`` and ``null_cosines`` are those of random directions and of vectors of shuffled labels; ``tried``
    holds each kind's coherence at the steps of the profile, ``steps`` the one that was taken.
    """

    trait: str
    validations: tuple[JudgeValidation, ...]
    unembedding: Unembedding
    lens: JacobianWords
    tokens: tuple[str, ...]
    token_sum: SparseSum
    null_explained: dict[str, Float[Tensor, "direction term"]]
    features: tuple[FeatureCosine, ...]
    feature_words: tuple[tuple[str, ...], ...]
    null_cosines: dict[str, Float[Tensor, " direction"]]
    check: DecompositionCheck
    null_checks: tuple[DecompositionCheck, ...]
    tried: dict[str, tuple[float, ...]]
    steps: dict[str, float]
    responses: ConditionScores
    scores: dict[str, Float[Tensor, "condition question rollout"]]

    def pick(self, kind: str, values: Float[Tensor, "condition question rollout"]) -> Float[Tensor, "member question"]:
        """Return what each direction of a kind got, averaged over rollouts."""
        rows = [i for i, name in enumerate(self.responses.conditions) if name.rpartition(" ")[0] == kind]
        if kind == UNSTEERED:
            rows = [self.responses.conditions.index(UNSTEERED)]
        return values[rows].nanmean(dim=-1)

    def rise(self, judge: str, kind: str) -> Float[Tensor, "member question"]:
        """Return by how many points each direction of a kind raises the score, question by question."""
        return self.pick(kind, self.scores[judge]) - self.pick(UNSTEERED, self.scores[judge])

    def mean_rise(self, judge: str, kind: str) -> Interval:
        """Return a kind's mean rise; over random directions as well as questions where they were drawn."""
        values = self.rise(judge, kind)
        if kind in (RANDOM, RANDOM_FEATURES):
            return mean_over_directions_interval(values)
        return mean_interval(values.nanmean(dim=0))

    def above(self, judge: str, kind: str, null: str) -> Interval:
        """Return by how many points a kind outscores a null; that null's directions and the questions are units."""
        return mean_over_directions_interval(self.rise(judge, kind).nanmean(dim=0) - self.rise(judge, null))

    def coherence(self, kind: str) -> Interval:
        """Return a kind's mean coherence, over questions."""
        return mean_interval(self.pick(kind, self.responses.coherences).nanmean(dim=0))

    def rank_agreement(self, judge: str) -> Interval:
        """Return whether nearer features raise the score further: Spearman's r over the features."""
        nearness = torch.tensor([abs(one.cosine) for one in self.features])
        rises = self.rise(judge, FEATURES).nanmean(dim=1)
        there = ~rises.isnan()
        if len(set(rises[there].tolist())) < 3:
            return Interval.missing()
        return bootstrap_spearman_r(nearness[there], rises[there])

    def standing_out(self) -> tuple[int, ...]:
        """Return the places of the features that raise the score beyond every random one, for all judges."""
        out = torch.ones(len(self.features), dtype=torch.bool)
        for judge in self.scores:
            rises = self.rise(judge, FEATURES).nanmean(dim=1)
            out &= rises > self._null_rises(judge).max().clamp(min=0)
        return tuple(out.nonzero().flatten().tolist())

    def expect_standing_out(self) -> float:
        """Return how many features would stand out by chance: as often as a random one does among the other random."""
        nulls = [self._null_rises(judge) for judge in self.scores]
        highest = [set((one == one.max()).nonzero().flatten().tolist()) if one.max() > 0 else set() for one in nulls]
        return len(self.features) * len(set.intersection(*highest)) / len(nulls[0])

    def _null_rises(self, judge: str) -> Float[Tensor, " direction"]:
        return torch.cat([self.rise(judge, kind) for kind in (RANDOM_FEATURES, RANDOM)]).nanmean(dim=1)

    def list_fair_nulls(self, kind: str) -> tuple[str, ...]:
        """Return the random kinds that leave text as coherent as a kind does; the others are no nulls for it."""
        own = self.coherence(kind).estimate
        return tuple(null for null in (RANDOM_FEATURES, RANDOM) if abs(own - self.coherence(null).estimate) <= _EQUAL)

    def beyond_shuffled(self, term: int = -1) -> Interval:
        """Return how much more of the vector a token sum explains than of vectors of shuffled labels, as a spread."""
        return spread(self.token_sum.explained[term] - self.null_explained[SHUFFLED][:, term])


@dataclass(frozen=True, eq=False)
class SaeFeatures(Result):
    """What experiments/sae_features.py finds."""

    layer: int
    reconstruction: Reconstruction
    n_features: int
    n_training_tokens: int
    n_training_texts: int
    traits: tuple[TraitContents, ...]

    @property
    def judges(self) -> dict[str, str]:
        """The judge that confirms, by trait."""
        return {one.trait: list(one.scores)[-1] for one in self.traits}

    def plot(self) -> go.Figure:
        """Draw sums of tokens, the nearest features' cosines, and what steering along each does, for each judge."""
        n = len(self.traits)
        heads = [f"{one.trait}: explained by a sum of tokens" for one in self.traits]
        heads += [f"{one.trait}: each direction's effect" for one in self.traits]
        figure = make_subplots(rows=2, cols=n, subplot_titles=heads, vertical_spacing=0.17, horizontal_spacing=0.07)
        for column, one in enumerate(self.traits, start=1):
            self._draw_sums(figure, column, one)
            self._draw_effects(figure, column, one)
        figure.update_yaxes(title_text="share of squared length", row=1, col=1)
        figure.update_yaxes(title_text="points above unsteered", row=2, col=1)
        lay_out(figure, self.say_finding(), self._describe(), width=1250, height=960, bottom=130, legend=-0.1)
        return figure

    def _draw_sums(self, figure: go.Figure, column: int, one: TraitContents) -> None:
        terms = list(range(1, len(one.token_sum.explained) + 1))
        for name, color in ((SHUFFLED, COLORS[1]), (RANDOM, GREY)):
            values = one.null_explained[name].quantile(torch.tensor([0.025, 0.5, 0.975]), dim=0)
            low, middle, high = (row.tolist() for row in values)
            figure.add_trace(
                go.Scatter(x=terms + terms[::-1], y=high + low[::-1], mode="lines", fill="toself",
                           fillcolor=color, opacity=0.25, line={"width": 0}, hoverinfo="skip",
                           showlegend=False, legendgroup=name),
                row=1, col=column,
            )  # fmt: skip
            figure.add_trace(
                go.Scatter(x=terms, y=middle, mode="lines", line={"color": color, "dash": "dot"}, legendgroup=name,
                           name=f"{name} (median, middle 95 %)", showlegend=column == 1),
                row=1, col=column,
            )  # fmt: skip
        figure.add_trace(
            go.Scatter(x=terms, y=one.token_sum.explained.tolist(), mode="lines+markers", legendgroup=VECTOR,
                       line={"color": COLORS[2]}, marker={"size": 5}, name=VECTOR, showlegend=False),
            row=1, col=column,
        )  # fmt: skip
        figure.update_xaxes(title_text="tokens in the sum", row=1, col=column)
        figure.update_yaxes(rangemode="tozero", row=1, col=column)

    def _draw_effects(self, figure: go.Figure, column: int, one: TraitContents) -> None:
        looks = {VECTOR: (COLORS[2], 0), FEATURES: (COLORS[3], 1), RANDOM_FEATURES: (COLORS[1], 2), RANDOM: (GREY, 3)}
        for place, judge in enumerate(one.scores):
            for kind, (color, at) in looks.items():
                x = place * (len(looks) + 1) + at
                rises = one.rise(judge, kind).nanmean(dim=1).tolist()
                if len(rises) > 1:
                    jitter = [x + 0.22 + 0.12 * (i % 3) for i in range(len(rises))]
                    figure.add_trace(
                        go.Scatter(x=jitter, y=rises, mode="markers", legendgroup=kind, showlegend=False,
                                   marker={"color": color, "size": 5, "opacity": 0.55}, hoverinfo="y"),
                        row=2, col=column,
                    )  # fmt: skip
                look = {"mode": "markers", "marker": {"color": color, "size": 11, "symbol": SYMBOLS[at]}}
                first = column == 1 and place == 0
                add_points(figure, 2, column, [x], [one.mean_rise(judge, kind)], kind, look, in_legend=first)
        ticks = [place * (len(looks) + 1) + 1.5 for place in range(len(one.scores))]
        figure.update_xaxes(
            tickvals=ticks, ticktext=["the model's own reading", "sentence vectors"][: len(ticks)], row=2, col=column
        )
        figure.add_hline(y=0, line={"dash": "dot", "color": GREY}, row=2, col=column)
        figure.update_layout(font={"color": INK})

    def say_finding(self) -> str:
        """Say in one line what all judges agree on."""
        surely = [one.trait for one in self.traits if self._surely(one, FEATURES)]
        vectors = [one.trait for one in self.traits if self._surely(one, VECTOR)]
        n_out = sum(len(one.standing_out()) for one in self.traits)
        total = sum(len(one.features) for one in self.traits)
        chance = sum(one.expect_standing_out() for one in self.traits)
        return (
            f"at equal coherence the vector outdoes random directions for {_list(vectors)}, its nearest features for "
            f"{_list(surely)}; {n_out} of {total} stand out ({chance:.0f} by chance)"
        )

    def _surely(self, one: TraitContents, kind: str) -> bool:
        """Whether a kind outdoes what is random for all judges, wherever that leaves text as coherent."""
        nulls = one.list_fair_nulls(kind)
        return bool(nulls) and all(one.above(judge, kind, null).low > 0 for judge in one.scores for null in nulls)

    def _describe(self) -> str:
        found, shown = self.reconstruction, self.traits[0]
        n_null = len(shown.null_explained[RANDOM])
        n_random = len(shown.rise(next(iter(shown.scores)), RANDOM))
        return (
            f"{self.model_name}, layer {self.layer}. Above: orthogonal matching pursuit over the unembedding's rows, "
            f"against {n_null} random directions and {n_null} vectors of shuffled labels. Below: the vector, the "
            f"{len(shown.features)} features nearest to it, each added by itself with the sign of its cosine, "
            f"{n_random} random features and {n_random} random directions, at the length at which each kind is as "
            f"coherent on other questions; small points are single directions, bars 95 % over "
            f"{len(shown.responses.questions)} questions, of random ones over directions too. Autoencoder: "
            f"{self.n_features} features, {found.n_firing:.0f} a token, trained on {self.n_training_tokens:,} tokens; "
            f"on other answers it explains {found.explained_variance:.0%} of the variance"
        )


def spread(values: Float[Tensor, " n"]) -> Interval:
    """Return the median and the middle 95 % of some values."""
    ends = torch.tensor([0.025, 0.5, 0.975], dtype=torch.float64)
    low, middle, high = values.double().quantile(ends).tolist()
    return Interval(middle, low, high)


def _list(names: Sequence[str]) -> str:
    return " and ".join(names) or "no trait"
