"""How far fine-tuned models are from accepted ones, and what is left of trait and task where they are averaged."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

from persona_lens.finetuning import PullBack
from persona_lens.plots.style import COLORS, GREY, INK, add_points, error_bars, lay_out, say
from persona_lens.reproduction.figures import Result
from persona_lens.statistics import Interval, bootstrap_auroc, mean_over_directions_interval

SPOILT, HARMLESS, REFERENCE = "spoilt", "harmless", "reference"
CONTROL_STYLES = {
    "base": ("towards the base: the adapter scaled", COLORS[2], "circle"),
    "accepted": ("towards an accepted model of the same task", COLORS[3], "square"),
}
_KIND_STYLES = {SPOILT: (COLORS[3], "diamond"), HARMLESS: (COLORS[0], "circle")}
Measure = Literal["score", "rise", "extra loss", "loss"]


@dataclass(frozen=True)
class MovedModel:
    """How far a fine-tuning went, and which way; shifts are of the last prompt token at the trait's layer.

    Args:
        name: What it was trained on.
        kind: ``spoilt`` or ``harmless``.
        weight_cosine: Of its change of weights with the reference's.
        weight_length: Of its change of weights.
        shift: Along each trait's vector, in residual-stream units, over questions.
        shift_in_units: The same in units of the harmless trainings, itself aside.
        shift_cosine: Of its shift in persona space with the reference's.
        shift_length: Of its shift in persona space.
    """

    name: str
    kind: str
    weight_cosine: float
    weight_length: float
    shift: dict[str, Interval]
    shift_in_units: dict[str, Interval]
    shift_cosine: Interval
    shift_length: float


@dataclass(frozen=True, eq=False)
class ControlModel(Result):
    """What experiments/control_model.py finds.

    Args:
        trait: The trait.
        layer: Where shifts are measured.
        judge_names: The judge that chose, and the second one.
        fronts: By control, one of each seed.
        models: The spoilt and harmless models.
        weights: How surely the weights' direction tells the spoilt ones.
        weights_by_kind: The same by each kind of module alone.
        n_rows: Rows of the task in each training, and as many answers.
    """

    trait: str
    layer: int
    judge_names: tuple[str, ...]
    fronts: dict[str, tuple[PullBack, ...]]
    models: tuple[MovedModel, ...]
    weights: Interval
    weights_by_kind: dict[str, Interval]
    n_rows: int

    @property
    def judges(self) -> dict[str, str]:
        """The judge that chose."""
        return {self.trait: self.judge_names[0]}

    @property
    def shares(self) -> tuple[float, ...]:
        """The shares tried."""
        return self.fronts["base"][0].shares

    def chosen(self, control: str) -> tuple[float, ...]:
        """Return the share that each seed's rule chose."""
        return tuple(front.chosen for front in self.fronts[control])

    def measure(self, control: str, what: Measure, share: float | None, judge: int = 0) -> Interval:
        """Average something over seeds and questions, or rows, both of which are drawn anew.

        Args:
            control: Whose fronts.
            what: ``score``; ``rise`` above the control; ``loss`` of the task; ``extra loss`` against the spoilt model.
            share: One of those tried; None takes the one that each seed chose.
            judge: Of the scores.
        """
        rows = []
        for front in self.fronts[control]:
            own = front.chosen if share is None else share
            at, zero, whole = (front.shares.index(one) for one in (own, 0.0, 1.0))
            scores = front.scores[:, judge, ~front.is_choosing_question]
            rows.append(
                scores[at] if what == "score" else scores[at] - scores[zero] if what == "rise"
                else front.losses[at] if what == "loss" else front.losses[at] - front.losses[whole]
            )  # fmt: skip
        return mean_over_directions_interval(torch.stack(rows))

    def kept(self, control: str) -> float:
        """Return the mean share of what training took off the task's loss, against the base, that is left."""
        base = torch.stack([front.losses[0] for front in self.fronts["base"]]).mean()
        spoilt, own = (self.measure(control, "loss", share).estimate for share in (1.0, None))
        return float((base - own) / (base - spoilt))

    def accuracy(self, control: str, share: float) -> Interval:
        """Return the mean accuracy over seeds, each with items of its own; the interval is over items.

        Of independent intervals, by recovering the variance at each end (Zou and Donner, Statistics in Medicine 27,
        2008).
        """
        found = [front.capability[front.shares.index(share)] for front in self.fronts[control]]
        mean, n = sum(one.estimate for one in found) / len(found), len(found)
        low, high = (
            math.sqrt(sum((one.estimate - end) ** 2 for one, end in zip(found, ends, strict=True))) / n
            for ends in ([one.low for one in found], [one.high for one in found])
        )
        return Interval(mean, mean - low, mean + high)

    def separate(self, scores: Sequence[float]) -> Interval:
        """Return the AUROC of a score of the models, spoilt against harmless."""
        sides = [[value for one, value in zip(self.models, scores, strict=True) if one.kind == kind]
                 for kind in (SPOILT, HARMLESS)]  # fmt: skip
        return bootstrap_auroc(*(torch.tensor(side) for side in sides))

    @property
    def detectors(self) -> dict[str, Interval]:
        """AUROC of each detector; the lengths say no more than how far a training went."""
        return {
            "weights: cosine with the reference": self.weights,
            "persona space: cosine with the reference": self.separate(
                [one.shift_cosine.estimate for one in self.models]
            ),
            "persona space: shift along the trait": self.separate(
                [one.shift[self.trait].estimate for one in self.models]
            ),
            "length of the change of weights": self.separate([one.weight_length for one in self.models]),
            "length of the shift": self.separate([one.shift_length for one in self.models]),
        }

    def plot(self) -> go.Figure:
        """Draw the front by each judge, accuracy by share, and what the detectors see of each model."""
        heads = ["trait against task, the judge that chose", "trait against task, the second judge", "capability"]
        heads += ["distance in weights", "distance in persona space", "in units of harmless trainings"]
        figure = make_subplots(
            rows=2, cols=3, vertical_spacing=0.2, horizontal_spacing=0.075,
            subplot_titles=heads,
        )  # fmt: skip
        for judge in range(2):
            self._draw_front(figure, judge)
        self._draw_accuracy(figure)
        self._draw_models(figure)
        lay_out(figure, self._find(), self._describe(), width=1350, height=1000, bottom=130, legend=-0.13)
        return figure

    def _draw_front(self, figure: go.Figure, judge: int) -> None:
        for control, (label, color, symbol) in CONTROL_STYLES.items():
            look = {
                "mode": "lines+markers+text",
                "text": [f"{share:g}" for share in self.shares],
                "textposition": "top right" if control == "base" else "bottom left",
                "textfont": {"color": color},
                "marker": {"symbol": symbol, "size": 9, "color": color},
                "line": {"color": color, "dash": "solid" if control == "base" else "dash"},
            }
            losses = [self.measure(control, "loss", share) for share in self.shares]
            scores = [self.measure(control, "score", share, judge) for share in self.shares]
            bars = {"width": 0, "thickness": 0.8}
            add_points(figure, 1, judge + 1, losses, scores, label, look, in_legend=judge == 0, bars=bars)
        figure.update_xaxes(title_text="loss on unseen rows of the task (nats a token)", row=1, col=judge + 1)
        figure.update_yaxes(
            title_text=f"{html.escape(self.trait)} score (0–100)", range=[-3, 103], row=1, col=judge + 1
        )

    def _draw_accuracy(self, figure: go.Figure) -> None:
        for control, (label, color, symbol) in CONTROL_STYLES.items():
            aside = -0.012 if control == "base" else 0.012  # so that the bars do not hide each other
            look = {
                "mode": "lines+markers",
                "marker": {"symbol": symbol, "size": 9, "color": color},
                "line": {"color": color, "dash": "solid" if control == "base" else "dash"},
            }
            found = [self.accuracy(control, share) for share in self.shares]
            add_points(figure, 1, 3, [share + aside for share in self.shares], found, label, look, in_legend=False)
        figure.update_xaxes(title_text="share of the spoilt model", row=1, col=3)
        figure.update_yaxes(title_text="multiple-choice accuracy", range=[0, 1], row=1, col=3)

    def _draw_models(self, figure: go.Figure) -> None:
        names = [one.name.replace("-", " ") for one in self.models]
        panels: tuple[tuple[list[Interval], str], ...] = (
            ([Interval(*[one.weight_cosine] * 3) for one in self.models], "cosine with the reference"),
            ([one.shift_cosine for one in self.models], "cosine with the reference"),
            ([one.shift_in_units[self.trait] for one in self.models], f"shift along {html.escape(self.trait)} (units)"),
        )
        for column, (found, label) in enumerate(panels, start=1):
            for kind, (color, symbol) in _KIND_STYLES.items():
                own = [index for index, one in enumerate(self.models) if one.kind == kind]
                figure.add_trace(
                    go.Scatter(
                        x=[found[index].estimate for index in own],
                        y=[names[index] for index in own],
                        error_x=error_bars([found[index] for index in own]),
                        mode="markers",
                        name="trained with the trait's answers" if kind == SPOILT else "harmless trainings",
                        legendgroup=kind,
                        showlegend=column == 1,
                        marker={"color": color, "symbol": symbol, "size": 10, "line": {"width": 1, "color": INK}},
                    ),
                    row=2,
                    col=column,
                )
            figure.add_vline(x=0, line={"dash": "dot", "color": GREY}, row=2, col=column)
            figure.update_xaxes(title_text=label, row=2, col=column)
            figure.update_yaxes(autorange="reversed", showticklabels=column == 1, row=2, col=column)

    def _find(self) -> str:
        """Say what averaging surely does for both judges, and whether the weights' direction tells spoilt models."""
        lower = [
            (control, share)
            for control in self.fronts
            for share in self.shares
            if share < 1 and all(self.fall(control, judge, share).low > 0 for judge in range(2))
        ]
        mixed = [f"{share:g} towards the {control}" for control, share in lower if share > 0]
        alone = {control for control, share in lower if share == 0}
        without = "no share but the control itself" if alone == self.fronts.keys() else "no share between"
        lowered = f"averaging surely lowers it for both judges at {', '.join(mixed) or without}"
        told = "surely" if self.weights.low > 0.5 else "not surely"
        return f"{html.escape(self.trait)}: {lowered}; weights {told} tell spoilt models (AUROC {say(self.weights)})"

    def fall(self, control: str, judge: int, share: float | None) -> Interval:
        """Return how much lower than the spoilt model a share scores, paired; arguments as :meth:`measure`."""
        rows = []
        for front in self.fronts[control]:
            scores = front.scores[:, judge, ~front.is_choosing_question]
            own = front.chosen if share is None else share
            rows.append(scores[front.shares.index(1.0)] - scores[front.shares.index(own)])
        return mean_over_directions_interval(torch.stack(rows))

    def _describe(self) -> str:
        front = self.fronts["base"][0]
        chosen = "; ".join(
            f"{control}: {', '.join(f'{share:g}' for share in self.chosen(control))}" for control in self.fronts
        )
        n_judged = int((~front.is_choosing_question).sum())
        names = ", ".join(html.escape(name) for name in self.judge_names)
        return (
            f"{self.model_name}; {len(self.fronts['base'])} seeds, each trained on {self.n_rows} workings of "
            f"arithmetic and {self.n_rows} overt answers; points are labelled with the spoilt model's share. Chosen by "
            f"the first judge on other questions, at most {front.max_rise:g} points above the accepted model: "
            f"{chosen}. "
            f"{n_judged} questions judge, {front.losses.shape[1]} rows; judges: {names}. Bars: 95 % over seeds and "
            f"questions (or rows); below over everyday questions, along {len(self.models[0].shift)} traits, layer "
            f"{self.layer}. Reference: other answers, another seed. Unit: root mean square of the other harmless "
            "trainings' shifts"
        )


def controls_to_markdown(found: Sequence[ControlModel]) -> str:
    """Write each trait's fronts, its detectors, and the figure."""
    lines = []
    for one in found:
        lines += [
            f"| {one.trait}: towards | share | score, first judge | second judge | below the spoilt model, first judge "
            "| second judge | loss of the task | accuracy |",
            "|---" * 8 + "|",
        ]
        for control in one.fronts:
            for share in one.shares:
                cells = [f"{one.measure(control, 'score', share, judge):.0f}" for judge in range(2)]
                cells += [f"{one.fall(control, judge, share):.0f}" for judge in range(2)]
                cells += [str(one.measure(control, "loss", share)), str(one.accuracy(control, share))]
                lines.append(f"| {control} | {share:g} | {' | '.join(cells)} |")
            chosen = ", ".join(f"{share:g}" for share in one.chosen(control))
            cells = [f"{one.measure(control, 'score', None, judge):.0f}" for judge in range(2)]
            cells += [f"{one.fall(control, judge, None):.0f}" for judge in range(2)]
            cells += [str(one.measure(control, "loss", None)), f"{one.kept(control):.0%} of the task kept"]
            lines.append(f"| {control} | chosen: {chosen} | {' | '.join(cells)} |")
        lines += ["", f"| detector of {one.trait}, no answer read | AUROC, spoilt against harmless |", "|---|---|"]
        lines += [f"| {name} | {auroc} |" for name, auroc in one.detectors.items()]
        lines += [f"| weights, {kind} alone | {auroc} |" for kind, auroc in one.weights_by_kind.items()]
        lines += ["", f"![Pulled back](../../figures/control_model_{one.trait}.png)", ""]
    return "\n".join(lines)
