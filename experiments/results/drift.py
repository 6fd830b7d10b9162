"""What becomes of a model over ten turns with users of several kinds, and what keeps it as it was."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from persona_lens.evaluation.drift import COHERENCE, LAST_PROMPT, LENGTH, REPETITION, RESPONSE, SURPRISE, Course, Drift
from persona_lens.judges.validation import JudgeValidation
from persona_lens.plots.style import COLORS, GREY, SYMBOLS, add_points, lay_out, make_room_for_title
from persona_lens.reproduction.figures import Result
from persona_lens.statistics.interval import Interval

_SHORT = {"score, 0 to 100": "points", "0 to 100": "points", "residual-stream units": "units"}
_CONFOUNDS = (LENGTH, REPETITION, SURPRISE, COHERENCE)


@dataclass(frozen=True, eq=False)
class DriftOverTurns(Result):
    """What experiments/drift.py finds.

    ``trait`` is the one that is acted on: capped at ``ceiling``, the ``quantile`` of ordinary projections, or steered
    by ``coefficient``. ``validations`` are of the two judges of each trait, in the order in which they score.
    """

    trait: str
    ceiling: float
    quantile: float
    coefficient: float
    validations: tuple[JudgeValidation, ...]
    drift: Drift

    @property
    def judges(self) -> dict[str, str]:
        """By trait, the judge that says most: the valid one where there is one."""
        return {trait: min(self._list_judges(trait), key=lambda name: ", valid" not in name) for trait in self.traits}

    @property
    def traits(self) -> tuple[str, ...]:
        """The traits that were read and judged."""
        return tuple(self.drift.layers)

    def list_courses(self, trait: str) -> list[Course]:
        """Return a trait's projections and its two judges' scores."""
        names = (LAST_PROMPT, RESPONSE, *self._list_judges(trait))
        return [self.drift.find(name, trait) for name in names]

    def list_confounds(self) -> list[Course]:
        """Return what drifts in small models whatever is said."""
        return [self.drift.find(name, self.trait if name == COHERENCE else "") for name in _CONFOUNDS]

    def list_figures(self) -> dict[str, go.Figure]:
        """Draw the slopes, and every course turn by turn as the model is."""
        turns = self.drift.plot()
        title, _, rest = turns.layout.title.text.partition("<br><sup>")
        turns.update_layout(title_text=f"{self._find_level()}<br><sup>{title}; {rest}")
        make_room_for_title(turns)
        return {"": self.plot(), "_turns": turns}

    def plot(self) -> go.Figure:
        """Draw how much steeper each kind's slope is than the neutral user's, and the confounds' slopes."""
        rows = [self.list_courses(trait) for trait in self.traits] + [self.list_confounds()]
        heads = [html.escape(_shorten(course)) for row in rows for course in row]
        figure = make_subplots(rows=len(rows), cols=4, subplot_titles=heads, vertical_spacing=0.13,
                               horizontal_spacing=0.07)  # fmt: skip
        for line, row in enumerate(rows, start=1):
            is_confound = line == len(rows)
            kinds = [kind for kind in self.drift.kinds if is_confound or kind != self.drift.control]
            for column, course in enumerate(row, start=1):
                for number, name in enumerate(self.drift.conversations.conditions):
                    measure = self.drift.slope if is_confound else self.drift.against_control
                    found = [measure(course, kind, number) for kind in kinds]
                    x = [at + 0.17 * (number - 1.5) for at in range(len(kinds))]
                    look = {"mode": "markers", "marker": {"symbol": SYMBOLS[number], "size": 8, "color":
                            COLORS[(2, 1, 3, 5)[number % 4]]}}  # fmt: skip
                    bars = {"width": 0, "thickness": 1.4}
                    first = line == column == 1
                    add_points(figure, line, column, x, found, name, look, in_legend=first, bars=bars)
                figure.add_hline(y=0, line={"dash": "dot", "color": GREY, "width": 1}, row=line, col=column)
                figure.update_xaxes(tickvals=list(range(len(kinds))), ticktext=kinds, tickangle=30,
                                    row=line, col=column)  # fmt: skip
                unit = _SHORT.get(course.unit, course.unit)
                title = f"{unit} a turn" if is_confound else f"{unit} a turn,<br>less neutral"
                figure.update_yaxes(title_text=title, title_standoff=3, row=line, col=column)
        figure.update_annotations(font_size=12)
        lay_out(figure, self._find(), self._describe(), width=1280, height=300 + 270 * len(rows), bottom=110,
                legend=-0.1)  # fmt: skip
        return figure

    def to_markdown(self) -> str:
        """Write slopes less the neutral user's, what the conditions change, the confounds, and the figures."""
        courses = {trait: self.list_courses(trait) for trait in self.traits}
        lines = ["| trait | user | last prompt token | response | " + " | ".join(self._head(self.traits[0])) + " |"]
        lines += ["|---" * 6 + "|"]
        for trait, own in courses.items():
            for kind in self.drift.kinds:
                is_control = kind == self.drift.control
                found = [
                    self.drift.slope(one, kind) if is_control else self.drift.against_control(one, kind) for one in own
                ]
                name = f"{kind}: the slope itself" if is_control else kind
                lines.append(f"| {trait} | {name} | {_join(found)} |")
        lines += ["", "| trait | condition | what changes | last prompt token | response | "
                  + " | ".join(self._head(self.traits[0])) + " |", "|---" * 7 + "|"]  # fmt: skip
        for trait, own in courses.items():
            for number, name in list(enumerate(self.drift.conversations.conditions))[1:]:
                level = [self.drift.level(one, None, number) for one in own]
                change = [self.drift.change(one, None, number) for one in own]
                lines.append(f"| {trait} | {name} | mean of all turns | {_join(level)} |")
                lines.append(f"| {trait} | {name} | slope a turn | {_join(change)} |")
        lines += ["", "| confound, slope a turn as it is | " + " | ".join(self.drift.kinds) + " |"]
        lines += ["|---" * (1 + len(self.drift.kinds)) + "|"]
        for course in self.list_confounds():
            found = [self.drift.slope(course, kind) for kind in self.drift.kinds]
            lines.append(f"| {course.name} ({course.unit}) | {_join(found)} |")
        ended = self.drift.conversations.n_ended
        lines += ["", f"Conversations that ended early: {ended}.", ""]
        lines += ["![Slopes](../../figures/drift.png)", "", "![Turn by turn](../../figures/drift_turns.png)"]
        return "\n".join(lines)

    def list_drifts(self, condition: int = 0) -> list[tuple[str, str, str]]:
        """Return trait, user and direction of every drift that both judges surely see, against the neutral user."""
        drifts = []
        for trait in self.traits:
            for kind in self.drift.kinds:
                both = [self.drift.against_control(one, kind, condition) for one in self.list_courses(trait)[2:]]
                if all(one.low > 0 for one in both):
                    drifts.append((trait, kind, "up"))
                elif all(one.high < 0 for one in both):
                    drifts.append((trait, kind, "down"))
        return drifts

    def _find(self) -> str:
        drifts = self.list_drifts()
        if not drifts:
            n = len(self.traits) * (len(self.drift.kinds) - 1)
            return f"Over ten turns no user surely moves what both judges see: none of {n} slopes of " + " and ".join(
                self.traits
            )
        said = "; ".join(f"{trait} goes {way} with a {kind} user" for trait, kind, way in drifts)
        return f"Over the turns, by both judges, {said}"

    def _find_level(self) -> str:
        """Say for which users a trait stands elsewhere than with the neutral one, by both judges."""
        apart = []
        for trait in self.traits:
            for kind in self.drift.kinds:
                both = [self.drift.level_against_control(one, kind) for one in self.list_courses(trait)[2:]]
                if all(one.low > 0 for one in both) or all(one.high < 0 for one in both):
                    apart.append(f"{trait} is {'higher' if both[0].low > 0 else 'lower'} with a {kind} user")
        return "By both judges, over all turns, " + ("; ".join(apart) or "no user's mean differs surely from neutral")

    def _describe(self) -> str:
        conversations = self.drift.conversations
        n = len(conversations.scripts) // len(self.drift.kinds)
        layers = ", ".join(f"{trait} at layer {layer}" for trait, layer in self.drift.layers.items())
        return (
            f"{self.model_name}, {n} scripts a kind of user, up to {conversations.n_tokens.shape[-1]} turns of at most "
            f"{self.config['profile']['max_new_tokens']} tokens; slope a turn less the neutral user's on the same "
            f"topic (last row: the slopes themselves), 95 % bootstrap over scripts. Read without intervention and "
            f"system prompt: {layers}. Acted on: {self.trait}, capped at {self.ceiling:.2f} ({self.quantile:.0%} of "
            f"ordinary), steered by {self.coefficient:g}, or a system prompt against it"
        )

    def _list_judges(self, trait: str) -> list[str]:
        names = [one.name for one in self.drift.courses if one.trait == trait and one.unit.startswith("score")]
        return names[:2]

    def _head(self, trait: str) -> list[str]:
        return [name.partition("), ")[0] + ")" if "), " in name else name for name in self._list_judges(trait)]


def _shorten(course: Course) -> str:
    """Return a panel's title."""
    if not course.trait or course.name == COHERENCE:
        return course.name
    name = course.name.replace("projection, ", "projection: ").replace(f" for {course.trait}", "")
    return f"{course.trait}, {name.replace('embedding judge ', '').replace('smollm2-135m-instruct', 'own model')}"


def _join(found: Sequence[Interval]) -> str:
    return " | ".join(map(str, found))
