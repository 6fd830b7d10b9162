"""A watched conversation: its readings turn by turn, as text, as an HTML table and as a figure."""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import TYPE_CHECKING

from persona_lens.checking import checked
from persona_lens.errors import InvalidArgumentError
from persona_lens.models.loading import ModelInfo
from persona_lens.monitoring.readings import TraitMonitor, TurnReading
from persona_lens.records import Record

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


@checked
@dataclass(frozen=True, eq=False)
class WatchedConversation(Record):
    """A conversation's readings, turn by turn.

    Args:
        model: The model.
        traits: What the readings rest on.
        prompts: The message before each of the assistant's turns.
        readings: Every turn's readings, the traits in the order of ``traits``.
    """

    model: ModelInfo
    traits: tuple[TraitMonitor, ...]
    prompts: tuple[str, ...]
    readings: tuple[TurnReading, ...]

    def of(self, trait: str) -> tuple[TurnReading, ...]:
        """Return one trait's readings over the turns.

        Raises:
            InvalidArgumentError: The trait was not watched.
        """
        names = [one.trait for one in self.traits]
        if trait not in names:
            raise InvalidArgumentError.of("trait", f"be one that was watched, {names}", trait)
        return tuple(reading for reading in self.readings if reading.trait == trait)

    @property
    def alerts(self) -> tuple[TurnReading, ...]:
        """Readings above a threshold."""
        return tuple(reading for reading in self.readings if reading.alert)

    def plot(self) -> Figure:
        """Draw the projections over the turns with the thresholds; returns a plotly Figure."""
        from persona_lens.plots.watched import plot_monitor  # plotly is imported only when drawing

        return plot_monitor(self)

    def describe_alert(self, reading: TurnReading) -> str:
        """Say how far above the ordinary a reading is."""
        if not reading.alert:
            return "ordinary"
        return f"above {self.traits[0].quantiles[reading.alert - 1]:.0%} of ordinary"

    def __repr__(self) -> str:
        alerts = [f"{r.trait} before turn {r.turn} ({self.describe_alert(r)})" for r in self.alerts]
        names = ", ".join(trait.trait for trait in self.traits)
        return (
            f"WatchedConversation({len(self.prompts)} turns of {self.model.name!r}, traits: {names}; alerts: "
            f"{'; '.join(alerts) or 'none'})"
        )

    def _repr_html_(self) -> str:
        head = "".join(
            f"<th>{html.escape(trait.trait)}<br><small>{html.escape(trait.verdict)}</small></th>"
            for trait in self.traits
        )
        rows = []
        for turn, prompt in enumerate(self.prompts, start=1):
            cells = []
            for reading in (r for r in self.readings if r.turn == turn):
                text = f"{reading.projection:.2f} ({self.describe_alert(reading)})"
                if reading.expected_score is not None:
                    text += f"<br>expected score {reading.expected_score}"
                cells.append(f"<td>{f'<b>{text}</b>' if reading.alert else text}</td>")
            shown = html.escape(prompt if len(prompt) <= 80 else prompt[:79] + "…")
            rows.append(f"<tr><th>{turn}</th><td>{shown}</td>{''.join(cells)}</tr>")
        caption = f"Projection before each of {html.escape(self.model.name)}'s turns"
        return (
            f"<table><caption>{caption}</caption><tr><th>turn</th><th>answers to</th>{head}</tr>{''.join(rows)}</table>"
        )
