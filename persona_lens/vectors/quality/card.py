"""A vector's quality card: what was measured of it, as a value, a table and a page."""

from __future__ import annotations

import html
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from persona_lens.checking import checked
from persona_lens.models.hooks.sites import check_layer
from persona_lens.models.loading import ModelInfo
from persona_lens.records import Record, format_table
from persona_lens.statistics import Interval
from persona_lens.vectors.quality.confounds import StyleConfound
from persona_lens.vectors.quality.repeats import Repeats
from persona_lens.vectors.quality.separation import Separation
from persona_lens.vectors.quality.specificity import Specificity
from persona_lens.vectors.quality.stability import Stability
from persona_lens.vectors.quality.unembedding import Unembedding

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_SAME = 0.99  # cosine from which on pairs are taken for those that a vector was found from
LEAST_COSINE = 0.5
"""Cosine of two halves under which a direction depends on which questions were asked."""
_ALIKE = 0.8  # cosine from which on two vectors are called alike
_EQUAL = 5.0  # points of coherence up to which two are called equal
_N_SHOWN = 6  # layers whose tokens the page names
_READ = "; `pl.vectors.read_quality_data(model, trait, examples=FILE)` reads them from written answers"
_HOW = {
    "stability": f"pass `data` with the pairs that the vector was found from{_READ}",
    "separation": f"pass `data` with held-out pairs{_READ}",
    "length": f"pass `data` with held-out pairs and their lengths{_READ}",
    "style": f"pass `data` with answers in the trait's style{_READ}",
    "specificity": "pass `data` with other traits' pairs",
    "again": "pass `again`, what extract_again finds under other seeds, or a vector from other written answers",
    "null": "pass `null`, what measure_null_margin finds: it takes sampling and a judge",
}


@checked
@dataclass(frozen=True)
class NullMargin(Record):
    """By how much more a vector moves a judge's score than random directions that leave the text as coherent.

    Args:
        judge: Whose scores.
        layer: Zero-based block index.
        coefficient: Multiplies the raw vector.
        margin: Points of 100 above the random directions, or below them where the coefficient is negative; over
            directions and questions.
        coherence: Of the text steered with the vector.
        null_coherence: Of that under the random directions.
        scale: How many times as long as the vector's push theirs was; None where that was not kept.
    """

    judge: str
    layer: int
    coefficient: float
    margin: Interval
    coherence: float
    null_coherence: float
    scale: float | None = None


@checked
@dataclass(frozen=True, eq=False)
class VectorQuality(Record):
    """What was measured of a vector, at every layer; None or empty is what there was nothing to measure with.

    Args:
        trait: The vector's trait.
        model: Its model.
        vector: The vector's digest; see :attr:`persona_lens.PersonaVector.digest`.
        layer: The one that the table and the text are about.
        reproduced: Cosine of the vector with the direction of the pairs that ``stability`` is measured on; where it is
            not 1, they are other pairs than the vector's.
        stability: How far it depends on which pairs it was found from.
        split_half: Cosine of the directions of two halves of its questions, as the vector itself carries it.
        again: How far it comes out the same when it is found anew.
        separation: How well it tells answers apart that it was not found from.
        length: Correlation of projections with the lengths of held-out answers, within the class.
        style: How far it reads the trait's style in place of the trait.
        specificity: What it makes of other traits.
        unembedding: What it would write.
        null: By how much more it moves a score than random directions at equal coherence.
    """

    trait: str
    model: ModelInfo
    vector: str
    layer: int
    reproduced: tuple[float, ...] = ()
    stability: Stability | None = None
    again: Repeats | None = None
    separation: Separation | None = None
    length: tuple[Interval, ...] = ()
    style: StyleConfound | None = None
    specificity: tuple[Specificity, ...] = ()
    unembedding: Unembedding | None = None
    null: NullMargin | None = None
    split_half: tuple[float, ...] = ()

    @property
    def missing(self) -> dict[str, str]:
        """What was not measured, and what it takes."""
        return {name: how for name, how in _HOW.items() if not getattr(self, name)}

    def list_lines(self, layer: int | None = None) -> tuple[tuple[str, str, str], ...]:
        """Return each measure of a layer: its name, its value, and what noise or an ideal vector would have.

        Args:
            layer: Zero-based block index; None takes the card's.

        Raises:
            LayerOutOfRangeError: The model has no such layer.
        """
        at = self.layer if layer is None else check_layer(layer, self.model.n_layers)
        return tuple(self._list_lines(at))

    def _list_lines(self, at: int) -> Iterator[tuple[str, str, str]]:
        if self.stability is not None:
            found = self.stability
            yield "pairs that it rests on", f"{found.n_pairs}, of {found.n_questions} questions", ""
            yield "cosine with what these pairs give", f"{self.reproduced[at]:.2f}", "1, or they are others"
            yield "agreement of single differences", str(found.agreement[at]), "noise: 0"
            yield "cosine of two differences", str(found.pairwise[at]), "noise: 0"
            yield "cosine of two halves (95 % of halvings)", str(found.split_half[at]), "noise: 0"
            yield "cosine of two wholes, by Spearman and Brown", f"{found.reliability[at]:.2f}", "noise: 0"
            yield "angle to that of endless pairs, degrees", f"{found.cone[at]:.0f}", "noise: 90"
        elif self.split_half:
            yield "cosine of two halves, as found", f"{self.split_half[at]:.2f}", "noise: 0"
        if self.again is not None:
            found_anew = f"cosine of two, found anew ({'; '.join(self.again.sources)})"
            yield found_anew, _say_spread(self.again, at), "noise: 0"
        if self.separation is not None:
            yield "held-out AUROC", str(self.separation.auroc[at]), "deaf: 0.5"
            yield "held-out d'", str(self.separation.d_prime[at]), "deaf: 0"
        if self.style is not None:
            yield "AUROC, style alone against ordinary", str(self.style.auroc[at]), "unconfounded: 0.5"
            yield "cosine with style less ordinary", str(self.style.cosine[at]), "unconfounded: 0"
        if self.length:
            yield "correlation with length, within the class", str(self.length[at]), "unconfounded: 0"
        for one in self.specificity:
            yield f"{one.trait}: cosine", str(one.cosine[at]), "specific: 0"
            yield f"{one.trait}: AUROC", str(one.auroc[at]), "specific: 0.5"
        if self.unembedding is not None:
            read, random = self.unembedding.layers[at], self.unembedding.random
            yield "promotes", _say_tokens(read.promoted), ""
            yield "demotes", _say_tokens(read.demoted), ""
            yield "excess kurtosis over the vocabulary", f"{read.kurtosis:.1f}", f"random: {random:.1f}"
        if self.null is not None:
            where = (
                f"layer {self.null.layer} × {self.null.coefficient:.2g}, {self.null.judge}; coherence "
                f"{self.null.coherence:.0f}, theirs {self.null.null_coherence:.0f}"
                + ("" if self.null.scale is None else f", at {self.null.scale:.2g} times its length")
            )
            yield (
                f"points beyond random directions of equal coherence ({where})",
                f"{self.null.margin:.0f}",
                "no effect: 0",
            )
        for name, how in self.missing.items():
            yield f"{name}: not measured", how, ""

    def list_concerns(self, layer: int | None = None) -> tuple[str, ...]:
        """Return what a layer's measures say against the vector: what is sure with 95 % confidence, or its number.

        Args:
            layer: Zero-based block index; None takes the card's.

        Raises:
            LayerOutOfRangeError: The model has no such layer.
        """
        at = self.layer if layer is None else check_layer(layer, self.model.n_layers)
        return tuple(self._list_concerns(at))

    def _list_concerns(self, at: int) -> Iterator[str]:
        if self.stability is not None:
            if self.reproduced[at] < _SAME:
                yield f"the pairs given lead to another direction than the vector (cosine {self.reproduced[at]:.2f})"
            if not self.stability.pairwise[at].low > 0:
                yield "two pairs' differences do not surely agree"
            if not self.stability.reliability[at] >= _ALIKE:
                yield f"as many other pairs would give another direction (cosine {self.stability.reliability[at]:.2f})"
        elif self.split_half and not self.split_half[at] >= LEAST_COSINE:
            yield f"the other half of its questions gives another direction (cosine {self.split_half[at]:.2f})"
        if self.again is not None and not self.again.cosine[at].estimate >= _ALIKE:
            yield f"found anew it is another direction (cosine {_say_spread(self.again, at)})"
        if self.separation is not None and not self.separation.auroc[at].low > 0.5:
            yield "held-out answers are not surely told apart"
        if self.style is not None and self.style.auroc[at].low > 0.5:
            yield f"style without the trait counts as the trait (AUROC {self.style.auroc[at]})"
        if self.length and _excludes(self.length[at], 0.0):
            yield f"length counts within a class (r = {self.length[at]})"
        heard = [f"{one.trait} {one.auroc[at]}" for one in self.specificity if _excludes(one.auroc[at], 0.5)]
        if heard:
            yield f"other traits are told from their opposites too (AUROC: {', '.join(heard)})"
        if self.null is not None:
            if not self.null.margin.low > 0:
                yield "steering is not surely above random directions of equal coherence"
            spared = self.null.null_coherence - self.null.coherence
            if spared > _EQUAL:
                yield f"the random directions left text more coherent, by {spared:.0f} points: they were pushed less"
            if spared < -_EQUAL:
                yield f"the random directions left text less coherent, by {-spared:.0f} points: they were pushed more"

    def plot(self) -> Figure:
        """Draw every measure over layers; returns a plotly Figure."""
        from persona_lens.plots.quality import plot_quality  # plotly is imported only when drawing

        return plot_quality(self)

    def to_markdown(self) -> str:
        """Return the table, then the concerns, as Markdown; text from the model is escaped."""
        name = _escape_markdown(f"{self.trait}, {self.model.name}")
        lines = [f"| {name} | layer {self.layer} | would be |", "|---|---|---|"]
        lines += ["| " + " | ".join(map(_escape_markdown, line)) + " |" for line in self.list_lines()]
        concerns = [f"- {_escape_markdown(one)}" for one in self.list_concerns()] or ["- none"]
        return "\n".join([*lines, "", "What speaks against it:", "", *concerns])

    def __repr__(self) -> str:
        said = []
        if self.stability is not None:
            said.append(f"agreement {self.stability.agreement[self.layer]}")
        if self.separation is not None:
            said.append(f"held-out AUROC {self.separation.auroc[self.layer]}")
        n_concerns = len(self.list_concerns())
        said.append(f"{n_concerns} {'concern' if n_concerns == 1 else 'concerns'}")
        said += [f"{len(self.missing)} not measured"] if self.missing else []
        return f"VectorQuality({self.trait!r} on {self.model.name!r}, layer {self.layer}: {', '.join(said)})"

    def _repr_html_(self) -> str:
        head = (self.trait, f"layer {self.layer}", "would be")
        page = format_table(f"Quality of a vector, {self.model.name}", self.list_lines(), head)
        concerns = "".join(f"<li>{html.escape(one)}</li>" for one in self.list_concerns()) or "<li>none</li>"
        page += f"<p>What speaks against it:</p><ul>{concerns}</ul>"
        if self.unembedding is not None:
            step = max(1, self.model.n_layers // _N_SHOWN)
            rows = [
                (layer, _say_tokens(read.promoted), _say_tokens(read.demoted), f"{read.kurtosis:.1f}")
                for layer, read in enumerate(self.unembedding.layers)
                if layer % step == step - 1 or layer == self.layer
            ]
            page += format_table("What it would write", rows, ("layer", "promotes", "demotes", "excess kurtosis"))
        return page


def _excludes(interval: Interval, value: float) -> bool:
    return interval.low > value or interval.high < value


def _say_spread(again: Repeats, at: int) -> str:
    """Write one cosine, or the mean of several with the lowest and highest."""
    return f"{again.cosine[at].estimate:.2f}" if len(again.sources) == 1 else str(again.cosine[at])


def _say_tokens(tokens: tuple[tuple[str, float], ...]) -> str:
    return " ".join(repr(token) for token, _ in tokens)


def _escape_markdown(text: str) -> str:
    """Escape what Markdown or HTML would take for its own."""
    escaped = html.escape(text, quote=False)
    for mark in "\\`*_[]|~":
        escaped = escaped.replace(mark, f"&#{ord(mark)};")
    return escaped
