"""Roles in persona space, how far prompts lead from the assistant, and what a floor under the axis brings back."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go
import torch
from jaxtyping import Float
from plotly.subplots import make_subplots
from torch import Tensor

from persona_lens.plots.space import KIND_STYLES
from persona_lens.plots.style import COLORS, GREY, INK, add_intervals, lay_out
from persona_lens.reproduction.figures import Result
from persona_lens.space import AxisDistances, PersonaSpace, RolePlaying
from persona_lens.statistics import Interval, bootstrap_mean, mean_over_directions_interval

RANDOM = "random"


@dataclass(frozen=True)
class LayerShare:
    """One layer: what its first component explains, its cosine with the axis there, and the axis' between halves."""

    layer: int
    share: float
    axis_cosine: float
    axis_half_cosine: float


@dataclass(frozen=True)
class JudgeCard:
    """A judge of being the assistant, on questions that it was not fitted on.

    ``auroc`` tells the assistant's answers from those in roles; ``shuffled`` says how often the assistant's words in
    any order pass for more of an assistant than in theirs, 0.5 if order counts for nothing.
    """

    name: str
    auroc: Interval
    shuffled: Interval


def find_null(floor: str) -> str:
    """Name the random floors that move the answers as far as one under the axis."""
    return f"{RANDOM} {floor.split()[-1]}"


@dataclass(frozen=True, eq=False)
class Capping:
    """Answers in the roles that are played best, with and without a floor, on questions that made neither.

    Args:
        capped_roles: Those roles.
        cap_layers: The layers that have a floor.
        conditions: ``role`` has none; ``floor 25`` has it at that percentile of ordinary tokens; ``random 25, 0`` is
            the first random direction's that moves the answers as far.
        moved: By floor, how far it moves the roles' answers, in nats a token.
        null_heights: How many of the axis' deviations above an ordinary answer the random floors lie that move as far.
        null_moved: How far they do.
        judges_measured: Those that score: 100 is the assistant, 0 a role.
        scores: By judge.
        coherences: Of the same answers.
        assistant_scores: Of the assistant itself, without and with the floor at the 25th percentile.
        assistant_coherences: Likewise.
        below_floor: By percentile, the share of uncapped answers whose mean lies below the floor, in the middle of the
            layers: of the roles, and of the assistant.
        responses: First answers, by condition and role in turn, and question.
    """

    capped_roles: tuple[str, ...]
    cap_layers: tuple[int, ...]
    conditions: tuple[str, ...]
    moved: tuple[float, ...]
    null_heights: Float[Tensor, "floor direction"]
    null_moved: Float[Tensor, "floor direction"]
    judges_measured: tuple[JudgeCard, ...]
    scores: Float[Tensor, "judge condition role question"]
    coherences: Float[Tensor, "condition role question"]
    assistant_scores: Float[Tensor, "judge condition question"]
    assistant_coherences: Float[Tensor, "condition question"]
    below_floor: tuple[tuple[str, float, float], ...]
    responses: tuple[tuple[str, ...], ...]

    @property
    def floors(self) -> list[str]:
        """The conditions with a floor under the axis."""
        return [name for name in self.conditions if name.startswith("floor")]

    def _rows(self, condition: str) -> list[int]:
        """Return a condition's rows: one, or those of all random directions."""
        return [i for i, name in enumerate(self.conditions) if name.split(",")[0] == condition]

    def score(self, judge: int, condition: str) -> Interval:
        """Return a condition's mean score over questions; of random floors over directions too."""
        values = self.scores[judge, self._rows(condition)].nanmean(dim=1)
        return mean_over_directions_interval(values) if condition.startswith(RANDOM) else bootstrap_mean(values[0])

    def rise(self, judge: int, condition: str) -> Interval:
        """Return how many points a floor brings answers nearer to the assistant's, paired by question."""
        values = self.scores[judge].nanmean(dim=1)
        shift = values[self._rows(condition)] - values[self._rows("role")]
        return mean_over_directions_interval(shift) if condition.startswith(RANDOM) else bootstrap_mean(shift[0])

    def above_random(self, judge: int, condition: str) -> Interval:
        """Return by how many points more than random floors that move the answers as far."""
        values = self.scores[judge].nanmean(dim=1)
        return mean_over_directions_interval(values[self._rows(condition)] - values[self._rows(find_null(condition))])

    def gap(self, judge: int) -> Interval:
        """Return how many points the assistant scores above the roles, paired by question."""
        return bootstrap_mean(self.assistant_scores[judge, 0] - self.scores[judge, 0].nanmean(dim=0))

    def coherence(self, condition: str) -> float:
        """Return a condition's mean coherence."""
        return float(self.coherences[self._rows(condition)].nanmean())

    def measure_move(self, condition: str) -> float:
        """Return how far a floor moves the roles' answers, in nats a token; the mean over random directions."""
        floor = [find_null(name) for name in self.floors].index(find_null(condition))
        return float(self.null_moved[floor].mean()) if condition.startswith(RANDOM) else self.moved[floor]

    def assistant_cost(self, judge: int) -> Interval:
        """Return what the floor does to the assistant's own score, paired by question."""
        return bootstrap_mean(self.assistant_scores[judge, 1] - self.assistant_scores[judge, 0])


@dataclass(frozen=True, eq=False, repr=False)
class PersonaSpaceResult(Result):
    """What experiments/persona_space.py finds."""

    space: PersonaSpace
    layers: tuple[LayerShare, ...]
    playing: RolePlaying
    placebo_playing: RolePlaying
    role_distances: AxisDistances
    prompt_distances: AxisDistances
    serves_by_component: Interval
    serves_by_axis: Interval
    axis_half_cosine: float
    n_empty: int
    examples: dict[str, str]
    capping: Capping

    # What is read off ---------------------------------------------------------------------------------------------

    def list_beyond_placebo(self, distances: AxisDistances) -> list[str]:
        """Return who lies surely further from the assistant than prompts that say nothing, paired by question."""
        nothing = self.prompt_distances.by_question[self.prompt_distances.roles.index("placebo")]
        found = zip(distances.roles, distances.by_question, strict=True)
        return [name for name, ours in found if bootstrap_mean(ours - nothing).low > 0]

    # Figures ------------------------------------------------------------------------------------------------------

    def list_figures(self) -> dict[str, go.Figure]:
        """Draw the space, and what prompts and floors do."""
        return {"": self.plot(), "_axis": self.plot_axis()}

    def plot(self) -> go.Figure:
        """Draw the space."""
        return self.space.plot()

    def plot_axis(self) -> go.Figure:
        """Draw how far prompts lead from the assistant, and what floors bring back."""
        figure = make_subplots(
            rows=1, cols=3, column_widths=[0.3, 0.3, 0.4], horizontal_spacing=0.13,
            subplot_titles=["roles", "trait prompts", "floor under the axis"],
        )  # fmt: skip
        played = set(self.playing.played)
        self._draw_distances(figure, 1, self.role_distances, played)
        self._draw_distances(figure, 2, self.prompt_distances, None)
        self._draw_floors(figure)
        n_beyond = len(self.list_beyond_placebo(self.role_distances))
        layers = self.capping.cap_layers
        finding = (
            f"{n_beyond} of {len(self.role_distances.roles)} roles lie further from the assistant than empty prompts; "
            f"{self._say_floors()}"
        )
        subtitle = (
            f"{self.model_name}. Left, middle: layer {self.space.layer}, by an axis that knows neither role nor "
            f"question; 0 is the assistant, 1 the mean role; open: not told from the assistant. Right: "
            f"{', '.join(map(_say_name, self.capping.capped_roles))}; layers {layers[0]} to {layers[-1]}. "
            f"95 % intervals over questions, of random floors over directions too."
        )
        lay_out(figure, finding, subtitle, width=1300, height=1150, bottom=110, legend=-0.07)
        return figure

    def _say_floors(self) -> str:
        """Say which floors bring answers nearer to the assistant's for both judges, and what that can mean."""
        judges = range(len(self.capping.judges_measured))
        if any(self.capping.gap(one).low <= 0 for one in judges):
            return "no gap that both judges see for a floor to close"
        nearer = [name for name in self.capping.floors if all(self.capping.rise(one, name).low > 0 for one in judges)]
        if not nearer:
            return "no floor surely brings answers back for both judges"
        surely = [name for name in nearer if all(self.capping.above_random(one, name).low > 0 for one in judges)]
        shown = " and ".join(f"{name.split()[-1]} %" for name in surely or nearer)
        if not surely:
            return f"a floor at {shown} brings answers nearer, not surely beyond random floors"
        own, null = (self.capping.coherence(one) for one in (surely[-1], find_null(surely[-1])))
        return f"a floor at {shown} brings answers nearer, beyond random ones (coherence {own:.0f}, theirs {null:.0f})"

    def _draw_distances(self, figure: go.Figure, column: int, found: AxisDistances, played: set[str] | None) -> None:
        order = sorted(range(len(found.roles)), key=lambda i: found.distances[i].estimate)
        names = [found.roles[i] for i in order]
        for kind, (label, color, symbol) in KIND_STYLES.items():
            for is_open in (False, True):
                ours = [
                    i for i in order
                    if found.kinds[i] == kind and (played is not None and found.roles[i] not in played) == is_open
                ]  # fmt: skip
                if ours:
                    shown = [_say_name(found.roles[i]) for i in ours]
                    mark = f"{symbol}-open" if is_open else symbol
                    title = {"assistant": "prompts that say nothing"}.get(kind, label)
                    title += ", not told apart" if is_open else ""
                    add_intervals(figure, column, shown, [found.distances[i] for i in ours], color, mark, title)
                    figure.data[-1].marker.size = 8
        figure.add_vline(x=0, line={"color": INK, "width": 1}, row=1, col=column)
        figure.add_vline(x=1, line={"color": GREY, "width": 1, "dash": "dot"}, row=1, col=column)
        figure.update_yaxes(categoryorder="array", categoryarray=[_say_name(name) for name in names], row=1, col=column)
        figure.update_yaxes(tickfont={"size": 10}, dtick=1, row=1, col=column)
        figure.update_xaxes(title_text="distance from the assistant", row=1, col=column)

    def _draw_floors(self, figure: go.Figure) -> None:
        floors = [name for floor in reversed(self.capping.floors) for name in (floor, find_null(floor))]
        rows = ["assistant", *floors, "role"]
        labels = [self._say_condition(one) for one in rows]
        for judge, (card, color, symbol) in enumerate(
            zip(self.capping.judges_measured, (COLORS[2], COLORS[3]), ("circle", "square"), strict=True)
        ):
            found = [
                bootstrap_mean(self.capping.assistant_scores[judge, 0])
                if one == "assistant"
                else self.capping.score(judge, one)
                for one in rows
            ]
            add_intervals(figure, 3, labels, found, color, symbol, html.escape(card.name))
        figure.update_yaxes(categoryorder="array", categoryarray=labels[::-1], row=1, col=3)
        figure.update_xaxes(title_text="score: 100 is the assistant, 0 a role", row=1, col=3)

    def _say_condition(self, name: str) -> str:
        if name == "assistant":
            return f"the assistant<br>(coherence {float(self.capping.assistant_coherences[0].nanmean()):.0f})"
        percentile = name.split()[-1]
        shown = f"random, as far as {percentile}th" if name.startswith(RANDOM) else f"{percentile}th percentile"
        shown = "roles, no floor" if name == "role" else shown
        return f"{shown}<br>(coherence {self.capping.coherence(name):.0f})"

    # Page ---------------------------------------------------------------------------------------------------------

    def to_markdown(self) -> str:
        """Write the findings as tables."""
        figures = (
            "![Persona space](../../figures/persona_space.png)",
            "![The assistant axis](../../figures/persona_space_axis.png)",
        )
        tables = (
            self._say_findings(),
            self._variances_to_markdown(),
            self._playing_to_markdown(),
            self._far_to_markdown(),
        )
        return "\n\n".join([*tables, self._caps_to_markdown(), *figures])

    def _say_findings(self) -> str:
        """Say in words what was found, whatever it is."""
        space, playing, placebo = self.space, self.playing, self.placebo_playing
        n = len(playing.roles)
        named = _mean([one.estimate for one in playing.named])
        told = placebo.aurocs[placebo.roles.index("placebo")]
        away = self.list_beyond_placebo(self.role_distances)
        moved = [_say_name(one) for one in self.list_beyond_placebo(self.prompt_distances)]
        beyond = sum(one.is_beyond_chance for one in space.variances)
        least, most = (pick(self.layers, key=lambda one: one.axis_cosine) for pick in (min, max))
        said = [
            f"**Played:** {len(playing.played)} of {n} roles are told from the assistant by another model's sentence "
            f"vectors of the answers, and {named:.0%} of answers are given back to their role among {n} (chance "
            f"{playing.chance:.1%}). Prompts that say nothing of who answers are told from it at an AUROC of {told}.",
            f"**Components:** the first explains {space.variances[0].share:.0%} of the spread between roles, {beyond} "
            f"of {len(space.variances)} explain more than chance, and {space.noise_share:.0%} of the spread is there "
            f"too where answers are dealt out by chance. The axis to the assistant has a cosine of "
            f"{space.axis_cosines[0]} with the first, and {space.count_further_out(0)} of the {n} roles' own have a "
            f"greater one; over layers it is least at layer {least.layer} ({least.axis_cosine:.2f}) and most at layer "
            f"{most.layer} ({most.axis_cosine:.2f}). Roles written to serve lie nearer the assistant than others at an "
            f"AUROC of {self.serves_by_component} along the first component, and {self.serves_by_axis} along the axis.",
            f"**Moved:** prompts that say nothing lie at {self.prompt_distances.of('placebo')} of the way from the "
            f"assistant to the mean role, by an axis that knows neither role nor question; {len(away)} of {n} roles "
            f"lie surely further, and of {len(self.prompt_distances.roles) - 1} trait prompts {len(moved)}: "
            f"{', '.join(moved) or 'none'}.",
            f"**A floor under the axis:** {self._say_caps()}",
        ]  # fmt: skip
        return "\n\n".join(said)

    def _say_caps(self) -> str:
        judges = range(len(self.capping.judges_measured))
        apart = [one for one in judges if self.capping.gap(one).low > 0]
        if len(apart) < len(self.capping.judges_measured):
            return (
                f"on the capped roles the assistant's own answers score surely higher by {len(apart)} of "
                f"{len(self.capping.judges_measured)} judges, so that both could see nothing brought back."
            )
        said = []
        for name in self.capping.floors:
            surely = [one for one in judges if self.capping.rise(one, name).low > 0]
            more = [one for one in judges if self.capping.above_random(one, name).low > 0]
            share = [self.capping.rise(one, name).estimate / self.capping.gap(one).estimate for one in judges]
            beside = (
                f"beyond random floors that move the answers as far by {_count(more)} (coherence "
                f"{self.capping.coherence(name):.0f} against {self.capping.coherence(find_null(name)):.0f})"
            )
            said.append(
                f"at the {self._say_condition(name).split('<br>')[0]} answers come nearer to the assistant's by "
                f"{' and '.join(f'{one:.0%}' for one in share)} of what parts them, surely by {_count(surely)}, "
                f"{beside}"
            )
        cost = " and ".join(str(self.capping.assistant_cost(one)) for one in judges)
        return f"{'; '.join(said)}. To the assistant itself the floor at the 25th percentile does {cost} points."

    def _variances_to_markdown(self) -> str:
        heads = (
            "component", "variance explained", "of it by chance", "between halves of the questions, cosine (by chance)",
            "likewise, r of the roles", "cosine with the axis", "towards the assistant", "away from it",
        )  # fmt: skip
        lines = _head(heads)
        for k, one in enumerate(self.space.variances):
            ranked = [_say_name(role.name) for role in self.space.rank(k)]
            lines.append(
                f"| {k + 1} | {one.share:.0%} | {one.null_variance / one.variance:.0%} | {one.half_cosine:.2f} "
                f"({one.null_half_cosine:.2f}) | {one.half_correlation:.2f} | {self.space.axis_cosines[k]} | "
                f"{', '.join(ranked[:6])} | {', '.join(ranked[:-7:-1])} |"
            )
        return "\n".join(lines)

    def _playing_to_markdown(self) -> str:
        known = zip(self.playing.roles, self.playing.kinds, self.playing.aurocs, self.playing.named, strict=True)
        by_kind: dict[str, list[tuple[float, float, bool]]] = {}
        for _, kind, auroc, named in known:
            by_kind.setdefault(kind, []).append((auroc.estimate, named.estimate, auroc.low > 0.5))
        heads = (
            "roles", "told from the assistant", "mean AUROC",
            f"named among {len(self.playing.roles)} (chance {self.playing.chance:.1%})", "distance along the axis",
        )  # fmt: skip
        lines = _head(heads)
        far = self.role_distances
        for kind, rows in by_kind.items():
            mean = [_mean([row[i] for row in rows]) for i in (0, 1)]
            ours = far.by_question[[i for i, one in enumerate(far.kinds) if one == kind]].mean(dim=0)
            told = sum(row[2] for row in rows)
            lines.append(
                f"| {KIND_STYLES[kind][0]} | {told} of {len(rows)} | {mean[0]:.2f} | {mean[1]:.0%} | "
                f"{bootstrap_mean(ours)} |"
            )
        placebo = self.placebo_playing
        at = placebo.roles.index("placebo")
        is_told = "yes" if placebo.aurocs[at].low > 0.5 else "no"
        far_away = self.prompt_distances.of("placebo")
        lines.append(f"| prompts that say nothing | {is_told} | {placebo.aurocs[at]} | – | {far_away} |")
        return "\n".join(lines)

    def _far_to_markdown(self) -> str:
        vectors = {one.name: one.axis for one in self.space.vectors}
        heads = (
            "trait", "distance, its prompts", "distance, the opposite's", "cosine of its vector with the axis",
            "of the bundled vector",
        )  # fmt: skip
        lines = _head(heads)
        far = self.prompt_distances
        for name in [one for one in far.roles if not one.startswith("not_") and one != "placebo"]:
            bundled = vectors.get(f"{name} (bundled)")
            both = f"{far.of(name)} | {far.of(f'not_{name}')}"
            lines.append(f"| {name} | {both} | {vectors[name]} | {bundled or '–'} |")
        return "\n".join(lines)

    def _caps_to_markdown(self) -> str:
        capping = self.capping
        heads = [f"{html.escape(card.name)}: points nearer | beyond random floors" for card in capping.judges_measured]
        lines = _head(["condition", "moves answers, nats a token", "coherence", *" | ".join(heads).split(" | ")])
        for name in [name for floor in capping.floors for name in (floor, find_null(floor))]:
            cells = []
            for judge in range(len(capping.judges_measured)):
                beyond = "–" if name.startswith(RANDOM) else str(capping.above_random(judge, name))
                cells += [str(capping.rise(judge, name)), beyond]
            shown = self._say_condition(name).split("<br>")[0]
            lines.append(
                f"| {shown} | {capping.measure_move(name):.2f} | {capping.coherence(name):.0f} | {' | '.join(cells)} |"
            )
        gaps = []
        for judge in range(len(self.capping.judges_measured)):
            gaps += [str(capping.gap(judge)), "–"]
        lines.append(
            f"| the assistant itself | – | {float(capping.assistant_coherences[0].nanmean()):.0f} "
            f"| {' | '.join(gaps)} |"
        )
        cards = "; ".join(
            f"{html.escape(one.name)} tells the assistant from roles at {one.auroc}, shuffled words from words at "
            f"{one.shuffled}"
            for one in self.capping.judges_measured
        )
        return "\n".join([*lines, "", f"Judges, on questions that they were not fitted on (AUROC): {cards}."])


def _count(judges: Sequence[int]) -> str:
    """Say how many of two judges see something."""
    return ("neither judge", "one judge alone", "both judges")[len(judges)]


def _head(names: Sequence[str]) -> list[str]:
    """Write a table's head."""
    return [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]


def _say_name(name: str) -> str:
    return html.escape(name.replace("_", " "))


def _mean(values: Sequence[float]) -> float:
    return float(torch.tensor(values).mean())
