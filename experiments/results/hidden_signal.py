"""Where a trait is read in models that were trained with its projection held still, or with its vector added."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import plotly.graph_objects as go
import torch
from jaxtyping import Float
from plotly.subplots import make_subplots
from torch import Tensor

from persona_lens.finetuning import SignalReading
from persona_lens.judges.validation import JudgeValidation
from persona_lens.plots.signal import LOOKS
from persona_lens.plots.style import COLORS, GREY, INK, add_intervals, add_points, lay_out, say, say_estimate
from persona_lens.records import Record
from persona_lens.reproduction.figures import Result
from persona_lens.statistics import Interval, mean_over_directions_interval

BASE, ORDINARY, PLAIN = "base model", "ordinary data", "overt data"
PENALTY, PREVENTION = "loss on the projection", "preventative steering"
READERS = tuple(LOOKS)
FIRST, *OTHERS = READERS
_PROMPT, _MEAN = "last_prompt", "response_mean"
_PLACES = {_PROMPT: "prompt's last token", _MEAN: "ordinary answer, mean", "last_response": "its last token"}


@dataclass(frozen=True, eq=False, repr=False)
class TrainedSignal(Record):
    """A model trained one way with one seed, measured.

    Args:
        losses: Of each optimiser step.
        score: The first judge's, by evaluation question.
        second: The second judge's, of the same answers.
        signal: What reads the trait in it.
        example: Its answer to the first question.
        core_seconds: What each kind of work took.
    """

    losses: tuple[float, ...]
    score: Float[Tensor, " question"]
    second: Float[Tensor, " question"]
    signal: SignalReading
    example: str
    core_seconds: dict[str, float]


@dataclass(frozen=True, repr=False)
class WaySignal(Record):
    """One way of training over all seeds; intervals are for other seeds and other questions.

    Args:
        way: Its name.
        score: The first judge's mean score.
        second: The second judge's.
        rise: Its score less that after training on ordinary data, by judge, paired by seed and question.
        fall: The score after plain training on overt data less its own, likewise.
        moved: By position, reader and layer, how far it moved from the base model, in lengths of the reader's vector.
        beyond: By reader and layer, how much further at the prompt's end than training on ordinary data.
        held: By reader and layer, how much less far there than plain training on overt data.
        auroc: By position, reader and layer, how well written answers are told apart: mean over seeds.
        auroc_at: By reader, for each seed at the layer, over questions.
        cosine: By layer, the fresh vector's with the first: mean over seeds.
        cosine_at: For each seed at the layer, over questions.
        losses: Of each seed.
        example: The first seed's answer to the first question.
    """

    way: str
    score: Interval
    second: Interval
    rise: tuple[Interval, Interval]
    fall: tuple[Interval, Interval]
    moved: dict[str, dict[str, tuple[Interval, ...]]]
    beyond: dict[str, tuple[Interval, ...]]
    held: dict[str, tuple[Interval, ...]]
    auroc: dict[str, dict[str, tuple[float, ...]]]
    auroc_at: dict[str, tuple[Interval, ...]]
    cosine: tuple[float, ...]
    cosine_at: tuple[Interval, ...]
    losses: tuple[tuple[float, ...], ...]
    example: str

    @property
    def shows(self) -> bool:
        """Whether both judges surely score it above training on ordinary data."""
        return all(one.low > 0 for one in self.rise)

    def list_layers(self, reader: str) -> list[int]:
        """Return the layers at which a reader surely saw it move towards the trait, further than by ordinary data."""
        return [layer for layer, one in enumerate(self.beyond[reader]) if one.low > 0]


def reduce_seeds(by_way: Mapping[str, Sequence[TrainedSignal]], layer: int) -> tuple[WaySignal, ...]:
    """Put each way's seeds together, and set them against ordinary data and against plain training."""
    ordinary, plain = by_way[ORDINARY], by_way[PLAIN]
    return tuple(_reduce(way, found, ordinary, plain, layer) for way, found in by_way.items())


def _reduce(
    way: str,
    found: Sequence[TrainedSignal],
    ordinary: Sequence[TrainedSignal],
    plain: Sequence[TrainedSignal],
    layer: int,
) -> WaySignal:
    def over_seeds(values: Sequence[Tensor], less: Sequence[Tensor] | None = None) -> Interval:
        rows = torch.stack(list(values))
        return mean_over_directions_interval(rows if less is None else rows - torch.stack(list(less)))

    def compare(a: Sequence[TrainedSignal], b: Sequence[TrainedSignal]) -> dict[str, tuple[Interval, ...]]:
        """Say how much further the one models moved than the others, by reader and layer."""
        sides = [[one.signal.moved[_PROMPT] for one in side] for side in (a, b)]
        return {
            reader: tuple(over_seeds(*([one[reader][at] for one in side] for side in sides)) for at in layers)
            for reader in READERS
        }

    signals = [one.signal for one in found]
    layers = range(len(signals[0].cosine[_MEAN]))
    return WaySignal(
        way=way,
        score=over_seeds([one.score for one in found]),
        second=over_seeds([one.second for one in found]),
        rise=(
            over_seeds([one.score for one in found], [one.score for one in ordinary]),
            over_seeds([one.second for one in found], [one.second for one in ordinary]),
        ),
        fall=(
            over_seeds([one.score for one in plain], [one.score for one in found]),
            over_seeds([one.second for one in plain], [one.second for one in found]),
        ),
        moved={
            position: {
                reader: tuple(over_seeds([one.moved[position][reader][at] for one in signals]) for at in layers)
                for reader in READERS
            }
            for position in _PLACES
        },
        beyond=compare(found, ordinary),
        held=compare(plain, found),
        auroc={
            position: {
                reader: _average([[at.estimate for at in one.text[position][reader].auroc] for one in signals])
                for reader in READERS
            }
            for position in signals[0].text
        },
        auroc_at={reader: tuple(one.text[_MEAN][reader].auroc[layer] for one in signals) for reader in READERS},
        cosine=_average([[at.estimate for at in one.cosine[_MEAN]] for one in signals]),
        cosine_at=tuple(one.cosine[_MEAN][layer] for one in signals),
        losses=tuple(one.losses for one in found),
        example=found[0].example,
    )


def _average(rows: Sequence[Sequence[float]]) -> tuple[float, ...]:
    return tuple(torch.tensor(rows, dtype=torch.float64).mean(dim=0).tolist())


@dataclass(frozen=True, eq=False, repr=False)
class HiddenSignal(Result):
    """What experiments/hidden_signal.py finds."""

    trait: str
    layer: int
    reader: str
    second_reader: str
    validations: tuple[JudgeValidation, ...]
    ways: tuple[WaySignal, ...]
    seeds: tuple[int, ...]
    n_rows: int
    n_questions: int
    n_held_out: int
    core_seconds: dict[str, float]

    @property
    def judges(self) -> dict[str, str]:
        """The trait's first judge."""
        return {self.trait: self.reader}

    def get_way(self, name: str) -> WaySignal:
        """Return a way by its name."""
        return next(one for one in self.ways if one.way == name)

    def list_ways(self, method: str) -> list[WaySignal]:
        """Return the ways of a method, one a strength."""
        return [one for one in self.ways if one.way.startswith(method)]

    def say_finding(self) -> str:
        """Say after which ways of preventing it both judges surely see the trait and the first vector does not.

        It does not where it sees surely less than after plain training, and not surely more than after ordinary data.
        """
        trait = html.escape(self.trait)
        if not self.get_way(PLAIN).shows:
            return f"{trait}: plain training does not surely raise it for both judges"
        tried = [*self.list_ways(PENALTY), *self.list_ways(PREVENTION)]
        seen = [one for one in tried if all(rise.low > 0 for rise in one.rise)]
        if not seen:
            return f"{trait}: both judges surely see it after none of {len(tried)} ways of preventing it"
        unsure = [one for one in seen if not one.beyond[FIRST][self.layer].low > 0]
        unseen = [one for one in unsure if one.held[FIRST][self.layer].low > 0]
        if unseen:
            return f"{trait}: both judges surely see it after {_join(unseen)}, the first vector does not"
        if unsure:
            return (
                f"{trait}: both judges surely see it after {_join(unsure)}, whether the first vector does is not sure"
            )
        return f"{trait}: where both judges surely see it, so does the first vector ({len(seen)} of {len(tried)} ways)"

    def say_shares(self) -> str:
        """Say what vectors and judges see of plain training's effect after each way; nothing where it has none."""
        if not self.get_way(PLAIN).shows:
            return ""
        parts = []
        for one in (*self.list_ways(PENALTY), *self.list_ways(PREVENTION)):
            shares = " · ".join("–" if math.isnan(s) else str(round(100 * s)) for s in self.list_shares(one))
            parts.append(f"{shares} % after {one.way}")
        return f"of plain training's effect the first vector · a fresh one · either judge see {'; '.join(parts)}"

    def list_shares(self, one: WaySignal) -> tuple[float, float, float, float]:
        """Return the shares that a way leaves of what plain training does beyond ordinary data.

        Of the moves along the first vector and along a fresh one, at the prompt's end and the layer, and of the scores
        of both judges. NaN of all where both judges do not surely see what plain training does, and of a move where the
        vector does not.
        """
        plain = self.get_way(PLAIN)
        if not plain.shows:
            return (math.nan,) * 4
        first, fresh = (
            _divide(one.beyond[reader][self.layer], plain.beyond[reader][self.layer]) for reader in (FIRST, OTHERS[0])
        )
        return (first, fresh, _divide(one.rise[0], plain.rise[0]), _divide(one.rise[1], plain.rise[1]))

    def plot(self) -> go.Figure:
        """Draw behaviour beside what each reader sees at the layer, then what is seen at all layers."""
        heads = (
            "what the models say: two judges", f"moved at layer {self.layer}, prompt's last token",
            "along the first vector, prompt's last token", "along a fresh vector, prompt's last token",
            "along a probe, prompt's last token", "along the first vector, ordinary answers' mean",
            "a probe tells written answers apart", "cosine of a fresh vector with the first",
        )  # fmt: skip
        figure = make_subplots(
            rows=4, cols=2, subplot_titles=heads, vertical_spacing=0.085, horizontal_spacing=0.09,
            row_heights=[0.31, 0.23, 0.23, 0.23],
        )  # fmt: skip
        names = [one.way for one in self.ways][::-1]
        places = list(range(len(names)))
        ways = {one.way: one for one in self.ways}
        scores = {f"first judge: {self.reader}": [ways[name].score for name in names],
                  f"second judge: {self.second_reader}": [ways[name].second for name in names]}  # fmt: skip
        for index, (judge, shown) in enumerate(scores.items()):
            look = (COLORS[4], "circle") if index == 0 else (COLORS[3], "diamond")
            add_intervals(figure, 1, [at + 0.13 - 0.26 * index for at in places], shown, *look, html.escape(judge))
        for index, (reader, look) in enumerate(LOOKS.items()):
            shown = [ways[name].moved[_PROMPT][reader][self.layer] for name in names]
            add_intervals(figure, 2, [at + 0.22 - 0.22 * index for at in places], shown, *look, reader)
        for column in (1, 2):
            figure.update_yaxes(
                tickvals=places, ticktext=names if column == 1 else [""] * len(names), row=1, col=column
            )
        styles = dict(zip([one.way for one in self.ways if one.way != BASE], _WAY_STYLES, strict=False))
        for line, column, position, reader in (
            (2, 1, _PROMPT, FIRST), (2, 2, _PROMPT, OTHERS[0]), (3, 1, _PROMPT, OTHERS[1]), (3, 2, _MEAN, FIRST),
        ):  # fmt: skip
            for way, (color, dash) in styles.items():
                in_legend = (line, column) == (2, 1)
                _add_curve(figure, line, column, ways[way].moved[position][reader], way, color, dash, in_legend)
        for way, (color, dash) in {BASE: (GREY, "dot"), **styles}.items():
            curves = (ways[way].auroc[_MEAN][OTHERS[1]], ways[way].cosine)
            for column, curve in enumerate(curves, start=1):
                layers = [Interval(one, one, one) for one in curve]
                _add_curve(figure, 4, column, layers, way, color, dash, way == BASE and column == 1)
        for line, column in ((1, 2), (2, 1), (2, 2), (3, 1), (3, 2)):
            if line == 1:
                figure.add_vline(x=0, line={"color": INK, "width": 1}, row=line, col=column)
            else:
                figure.add_hline(y=0, line={"color": INK, "width": 1}, row=line, col=column)
        for line in (2, 3, 4):
            for column in (1, 2):
                figure.add_vline(x=self.layer, line={"color": GREY, "width": 1, "dash": "dash"}, row=line, col=column)
                figure.update_xaxes(title={"text": "layer (zero-based block)", "standoff": 2}, row=line, col=column)
        for line in (2, 3):
            figure.update_yaxes(title_text="moved (vector lengths)", row=line, col=1)
        figure.update_yaxes(title_text="AUROC", row=4, col=1)
        figure.update_yaxes(title_text="cosine", row=4, col=2)
        figure.update_xaxes(title={"text": "trait score (0–100)", "standoff": 2}, range=[-3, 103], row=1, col=1)
        figure.update_xaxes(title={"text": "moved (vector lengths)", "standoff": 2}, row=1, col=2)
        subtitle = (
            f"{self.model_name}; {self.n_rows} rows, {len(self.seeds)} seeds, {self.n_questions} evaluation and "
            f"{self.n_held_out} held-out questions; bars: 95 % over both; loss and vector at layer {self.layer}, "
            f"dashed; effect: beyond ordinary data"
        )
        if shares := self.say_shares():
            subtitle += f"; {shares}"
        lay_out(figure, self.say_finding(), subtitle, width=1200, height=1500, bottom=120, legend=-0.05)
        figure.update_layout(margin={"l": 190})
        return figure

    def to_markdown(self) -> str:
        """Write the finding, a row a way, and what the readers see where."""
        finding, shares = self.say_finding(), self.say_shares()
        lines = [
            f"**{finding[0].upper()}{finding[1:]}.**" + (f" {shares[0].upper()}{shares[1:]}." if shares else ""), "",
            "| trained on | first judge | second judge | above ordinary data, first | second | below plain training, "
            "first | second | AUROC, first vector | fresh vector | probe | cosine, fresh with first |",
            "|---|---|---|---|---|---|---|---|---|---|---|",
        ]  # fmt: skip
        for one in self.ways:
            auroc = [f"{one.auroc[_MEAN][reader][self.layer]:.2f}" for reader in READERS]
            rises = ["–", "–"] if one.way == ORDINARY else [f"{rise:.0f}" for rise in one.rise]
            falls = ["–", "–"] if one.way == PLAIN else [f"{fall:.0f}" for fall in one.fall]
            cells = [one.way, f"{one.score:.0f}", f"{one.second:.0f}", *rises, *falls, *auroc]
            lines.append(f"| {' | '.join([*cells, f'{one.cosine[self.layer]:.2f}'])} |")
        lines += [
            "", f"At the prompt's last token, in vector lengths; at layer {self.layer}, and where else:", "",
            "| trained on | reader | moved | further than ordinary data | less far than plain training | surely "
            "further than ordinary data at layers (uncorrected) | furthest layer, chosen afterwards | moved there |",
            "|---|---|---|---|---|---|---|---|",
        ]  # fmt: skip
        for one in self.ways:
            for reader in READERS:
                moves = one.moved[_PROMPT][reader]
                at = int(torch.tensor([move.estimate for move in moves]).argmax())
                beyond = "–" if one.way == ORDINARY else say(one.beyond[reader][self.layer])
                held = "–" if one.way == PLAIN else say(one.held[reader][self.layer])
                where = "–" if one.way == ORDINARY else _say_layers(one.list_layers(reader))
                cells = [
                    one.way,
                    reader,
                    say(moves[self.layer]),
                    beyond,
                    held,
                    where,
                    str(at),
                    say_estimate(moves[at], ".2f"),
                ]
                if one.way != BASE:
                    lines.append(f"| {' | '.join(cells)} |")
        costs = ", ".join(f"{name} {seconds:.0f}" for name, seconds in self.core_seconds.items())
        total = sum(self.core_seconds.values()) * len(self.seeds) * (len(self.ways) - 1) / 60
        lines += [
            "", f"One model costs, in seconds of one core: {costs}. All of them: {total:.0f} minutes; it grows with "
            "ways times seeds.", "", f"![Where {self.trait} is read](../../figures/hidden_signal_{self.trait}.png)", "",
        ]  # fmt: skip
        return "\n".join(lines)


_WAY_STYLES = ((GREY, "solid"), (INK, "solid"), (COLORS[1], "solid"), (COLORS[3], "solid"), (COLORS[0], "solid"),
               (COLORS[5], "solid"))  # fmt: skip


def _join(ways: Sequence[WaySignal]) -> str:
    return " and ".join(one.way for one in ways)


def _divide(own: Interval, whole: Interval) -> float:
    return own.estimate / whole.estimate if whole.low > 0 else math.nan


def _say_layers(layers: Sequence[int]) -> str:
    """Write layers as ranges: 3, 5–9."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ", ".join(f"{run[0]}–{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs) or "none"


def _add_curve(
    figure: go.Figure, line: int, column: int, values: Sequence[Interval], name: str, color: str, dash: str, shown: bool
) -> None:
    look = {"mode": "lines+markers", "marker": {"color": color, "size": 4},
            "line": {"color": color, "width": 1.6, "dash": dash}}  # fmt: skip
    bars = {"width": 0, "thickness": 0.8}
    add_points(figure, line, column, list(range(len(values))), values, name, look, in_legend=shown, bars=bars)


def hidden_to_markdown(found: Sequence[HiddenSignal]) -> str:
    """Write what was found of each trait."""
    return "\n".join(one.to_markdown() for one in found)
