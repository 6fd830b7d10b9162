"""Good traits in place of bad ones: steered towards when a model answers, promoted while it is trained."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go
import torch
from jaxtyping import Float
from plotly.subplots import make_subplots
from torch import Tensor

from persona_lens.evaluation.capability import Capability
from persona_lens.plots.style import COLORS, GREY, add_intervals, lay_out, say
from persona_lens.records import Record
from persona_lens.reproduction.figures import Result
from persona_lens.reproduction.ways import Strength
from persona_lens.statistics import Interval
from persona_lens.statistics.crossed import mean_over_directions_interval
from persona_lens.statistics.missing import difference_interval, mean_interval
from results.two_judges import Pair, add_pairs, falls, join, name_places, rises, say_which, show_legend_once

GOOD = ("empathy", "honesty", "curiosity")
# Which good traits should be a bad one's counterpart, fixed beforehand; models are trained with the first.
MATCHED = {"evil": ("empathy",), "hallucination": ("honesty", "curiosity"), "sycophancy": ("honesty",)}
# Those that models are trained on.
TRAINED = ("evil",)

UNSTEERED, RANDOM = "unsteered", "random direction"
BASE, NONE = "before training", "no prevention"
PREVENT, PROMOTE, REVERSED = "+bad in training", "−good in training", "+good in training"
WITH_RANDOM = "random in training"
AFTER_AWAY, AFTER_TOWARDS, AFTER_RANDOM = "−bad afterwards", "+good afterwards", "random afterwards"
WAYS = (BASE, NONE, PREVENT, PROMOTE, REVERSED, WITH_RANDOM, AFTER_AWAY, AFTER_TOWARDS, AFTER_RANDOM)
TASK, ORDINARY_ANSWERS = "task", "ordinary answers"
# Each way's floor, with which it is compared beside training that nothing was added to.
_FLOORS = {PREVENT: WITH_RANDOM, PROMOTE: WITH_RANDOM, REVERSED: WITH_RANDOM, AFTER_AWAY: AFTER_RANDOM,
           AFTER_TOWARDS: AFTER_RANDOM}  # fmt: skip
_KINDS = {TASK: (COLORS[5], "square"), ORDINARY_ANSWERS: (COLORS[4], "triangle-up")}


def name_towards(trait: str) -> str:
    """Return the name of a push towards a trait."""
    return f"+{trait}"


def name_away(trait: str) -> str:
    """Return the name of a push away from a trait."""
    return f"−{trait}"


def name_prompt(trait: str) -> str:
    """Return the name of the condition under a trait's system prompt."""
    return f"prompt for {trait}"


@dataclass(frozen=True, eq=False, repr=False)
class SteeredAnswers(Record):
    """The base model's answers to a bad trait's questions.

    Args:
        conditions: Pushes and prompts, the unsteered model first.
        questions: What was asked.
        scores: By trait, the bad one and each good one.
        coherence: Of the answers.
        examples: By condition, the answer to the first question.
    """

    conditions: tuple[str, ...]
    questions: tuple[str, ...]
    scores: dict[str, Float[Tensor, "judge condition question"]]
    coherence: Float[Tensor, "condition question"]
    examples: dict[str, str]

    @property
    def randoms(self) -> list[int]:
        """The places of random directions."""
        return [index for index, name in enumerate(self.conditions) if name.startswith(RANDOM)]

    def change(self, trait: str, condition: str, other: str = UNSTEERED) -> Pair:
        """Return how many points a condition scores above another, paired by question."""
        first, second = (
            difference_interval(*(scores[self.conditions.index(one)] for one in (condition, other)))
            for scores in self.scores[trait]
        )
        return first, second

    def change_of_random(self, trait: str) -> Pair:
        """Return how many points random directions score above the unsteered model."""
        first, second = (
            mean_over_directions_interval(scores[self.randoms] - scores[self.conditions.index(UNSTEERED)])
            for scores in self.scores[trait]
        )
        return first, second

    def above_random(self, trait: str, condition: str) -> Pair:
        """Return how many points a condition scores above random directions, over directions and questions."""
        first, second = (
            mean_over_directions_interval(scores[self.conditions.index(condition)] - scores[self.randoms])
            for scores in self.scores[trait]
        )
        return first, second

    def find_coherence(self, condition: str) -> Interval:
        """Return the mean coherence under a condition, or under all random directions."""
        if condition == RANDOM:
            return mean_over_directions_interval(self.coherence[self.randoms])
        return mean_interval(self.coherence[self.conditions.index(condition)])

    def lowers(self, trait: str, condition: str) -> bool:
        """Whether a trait is surely lower than unsteered and than under random directions, for both judges."""
        return falls(self.change(trait, condition)) and falls(self.above_random(trait, condition))


@dataclass(frozen=True, eq=False, repr=False)
class MeasuredWay(Record):
    """A model trained, or steered afterwards, in one way with one seed.

    Args:
        way: Its name.
        seed: Of rows, adapter, order and answers.
        scores: By trait, the bad one and the good one.
        held_out: Losses of each kind of row that was not trained on, in nats a token.
        losses: Of each optimiser step.
        example: Its answer to the first question.
        core_seconds: What each kind of work took, with what was measured of the same model under other ways; there
            none.
    """

    way: str
    seed: int
    scores: dict[str, Float[Tensor, "judge question"]]
    held_out: dict[str, Float[Tensor, " row"]]
    losses: tuple[float, ...]
    example: str
    core_seconds: dict[str, float]


@dataclass(frozen=True, eq=False, repr=False)
class MeasuredWays(Record):
    """A trained model as it is, and steered afterwards."""

    ways: tuple[MeasuredWay, ...]


@dataclass(frozen=True, eq=False, repr=False)
class TriedTrait(Record):
    """A bad trait, steered and trained.

    Args:
        trait: Its name.
        goods: The good traits that it is matched with; models were trained with the first.
        steered: The base model's answers.
        trained: Every way with every seed; none of a trait that is only steered.
    """

    trait: str
    goods: tuple[str, ...]
    steered: SteeredAnswers
    trained: tuple[MeasuredWay, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        """Those of the trainings."""
        return tuple(one.seed for one in self.trained if one.way == BASE)

    @property
    def ways(self) -> tuple[str, ...]:
        """The ways that were trained or steered afterwards; not every trait has each."""
        return tuple(way for way in WAYS if any(one.way == way for one in self.trained))

    @property
    def n_questions(self) -> int:
        """How many each trained model was asked."""
        return self.trained[0].scores[self.trait].shape[-1]

    def score(self, way: str, trait: str | None = None) -> Pair:
        """Return a way's mean score, over seeds and questions; of the bad trait unless another is named."""
        first, second = map(mean_over_directions_interval, self._stack(way, trait or self.trait))
        return first, second

    def less(self, way: str, other: str, trait: str | None = None) -> Pair:
        """Return how many points a way scores above another, paired by seed and question."""
        name = trait or self.trait
        differences = self._stack(way, name) - self._stack(other, name)
        first, second = map(mean_over_directions_interval, differences)
        return first, second

    def loss(self, way: str, kind: str) -> Interval:
        """Return a way's loss on held-out rows of a kind, over seeds and rows."""
        return mean_over_directions_interval(self._stack_losses(way, kind))

    def costs(self, way: str, other: str, kind: str) -> Interval:
        """Return how much higher a way's loss is than another's, paired by seed and row."""
        return mean_over_directions_interval(self._stack_losses(way, kind) - self._stack_losses(other, kind))

    @property
    def is_spoilt(self) -> bool:
        """Whether training without prevention surely raises the bad trait, for both judges."""
        return rises(self.less(NONE, BASE))

    def keeps_out(self, way: str) -> bool:
        """Whether a way surely leaves less of the bad trait than no prevention, and than a random push, for both."""
        return falls(self.less(way, NONE)) and falls(self.less(way, _FLOORS[way]))

    def _stack(self, way: str, trait: str) -> Float[Tensor, "judge seed question"]:
        return torch.stack([one.scores[trait] for one in self.trained if one.way == way], dim=1)

    def _stack_losses(self, way: str, kind: str) -> Float[Tensor, "seed row"]:
        return torch.stack([one.held_out[kind] for one in self.trained if one.way == way])


@dataclass(frozen=True, eq=False, repr=False)
class PositiveTraits(Result):
    """What experiments/positive_traits.py finds.

    Args:
        layer: Zero-based block index of every push.
        judge_names: By trait, its two judges.
        strengths: Of each push when answering, in lengths of the vector.
        training_strengths: Of each push along a vector in training.
        capabilities: Of the base model under each push.
        traits: The bad ones.
    """

    layer: int
    judge_names: dict[str, tuple[str, str]]
    strengths: dict[str, Strength]
    training_strengths: dict[str, Strength]
    capabilities: dict[str, Capability]
    traits: tuple[TriedTrait, ...]

    @property
    def judges(self) -> dict[str, str]:
        """Of each bad trait the judge that says most: the valid one where there is one."""
        return {one.trait: min(self.judge_names[one.trait], key=lambda name: ", valid" not in name)
                for one in self.traits}  # fmt: skip

    @property
    def goods(self) -> tuple[str, ...]:
        """The good traits that were steered towards."""
        return tuple(name for name in GOOD if name_towards(name) in self.strengths)

    def list_pairs(self) -> list[tuple[TriedTrait, str]]:
        """Return every bad trait with every good one that it is matched with."""
        return [(one, good) for one in self.traits for good in one.goods if good in self.goods]

    @property
    def trained(self) -> tuple[TriedTrait, ...]:
        """The bad traits that models were trained on."""
        return tuple(one for one in self.traits if one.trained)

    # What is found --------------------------------------------------------------------------------------------------

    def say_steering(self) -> str:
        """Say which bad traits steering towards a good one surely lowers, and how that compares with steering away."""
        pairs = self.list_pairs()
        lowered = [f"{one.trait} by {good}" for one, good in pairs
                   if one.steered.lowers(one.trait, name_towards(good))]  # fmt: skip
        away = [one.trait for one in self.traits if one.steered.lowers(one.trait, name_away(one.trait))]
        if lowered:
            said = f"steering towards the good surely lowers the bad for {len(lowered)} of {len(pairs)} pairs "
            said += f"({join(lowered)})"
        else:
            said = f"steering towards the good surely lowers the bad for none of {len(pairs)} pairs"
        return f"{said}, steering away from the bad for {say_which(away, len(self.traits))}"

    def say_training(self) -> str:
        """Say which ways keep the bad out, and whether promoting leaves more or less of it than preventing."""
        spoilt = [one for one in self.trained if one.is_spoilt]
        if not spoilt:
            return "training on bad answers surely raises no bad trait for both judges"
        tried = (PREVENT, PROMOTE, AFTER_AWAY, AFTER_TOWARDS)
        kept = {one.trait: [way for way in tried if one.keeps_out(way)] for one in spoilt}
        by = [f"{trait} by {join(ways)}" for trait, ways in kept.items() if ways]
        said = [f"surely kept out: {'; '.join(by)}" if by else f"none of {len(tried)} ways surely keeps the bad out"]
        more = [one.trait for one in spoilt if rises(one.less(PROMOTE, PREVENT))]
        fewer = [one.trait for one in spoilt if falls(one.less(PROMOTE, PREVENT))]
        for word, names in (("more", more), ("less", fewer)):
            if names:
                said.append(f"{PROMOTE} leaves surely {word} of {join(names)} than {PREVENT}")
        if not more and not fewer:
            said.append(f"whether {PROMOTE} or {PREVENT} leaves less is not sure")
        return ", ".join(said)

    # Figures --------------------------------------------------------------------------------------------------------

    def plot(self) -> go.Figure:
        """Draw what steering towards the good does to the bad trait, to the good one and to coherence."""
        heads = [f"{html.escape(one.trait)}: {what}" for what in ("change of the bad trait",
                 "change of the good itself", "coherence") for one in self.traits]  # fmt: skip
        figure = make_subplots(
            rows=3, cols=len(self.traits), subplot_titles=heads, horizontal_spacing=0.13, vertical_spacing=0.09
        )
        for column, one in enumerate(self.traits, start=1):
            steered = one.steered
            names = [name_away(one.trait), *map(name_towards, self.goods), RANDOM, *map(name_prompt, self.goods)]
            changes = [steered.change_of_random(one.trait) if name == RANDOM else steered.change(one.trait, name)
                       for name in names]  # fmt: skip
            add_pairs(figure, 1, column, names, changes)
            own = [name for good in self.goods for name in (name_towards(good), name_prompt(good))]
            raised = [steered.change(good, name) for good in self.goods
                      for name in (name_towards(good), name_prompt(good))]  # fmt: skip
            add_pairs(figure, 2, column, own, raised)
            names = [UNSTEERED, *names]
            figure_intervals = [steered.find_coherence(name) for name in names]
            add_intervals(figure, column, list(range(len(names)))[::-1], figure_intervals, GREY, "square",
                          "coherence", line=3)  # fmt: skip
            name_places(figure, 3, column, [_mark(name, one.goods) for name in names])
            name_places(figure, 1, column, [_mark(name, one.goods) for name in names[1:]])
            name_places(figure, 2, column, [_mark(name, one.goods) for name in own])
            figure.update_xaxes(title={"text": "points (0–100)", "standoff": 2}, row=1, col=column)
            figure.update_xaxes(title={"text": "points (0–100)", "standoff": 2}, row=2, col=column)
            figure.update_xaxes(title={"text": "coherence (0–100)", "standoff": 2}, range=[-3, 103], row=3, col=column)
        show_legend_once(figure)
        profile = self.config["profile"]
        subtitle = (
            f"{self.model_name}; every push at layer {self.layer}, costing {profile['divergence']:g} nats a token; "
            f"{len(self.traits[0].steered.questions)} questions a bad trait, {profile['n_random']} random directions;"
            f"<br>bars: 95 %; sure: below unsteered and below random, for both judges; bold: the pairs fixed beforehand"
        )
        title = self.say_steering().replace(", steering away", ",<br>steering away")
        lay_out(figure, title, subtitle, width=1250, height=1250, bottom=110, legend=-0.07)
        figure.update_layout(margin={"l": 150})
        return figure

    def plot_training(self) -> go.Figure:
        """Draw what each way leaves of the bad trait and of the good one, and what it costs."""
        heads = [f"{html.escape(one.trait)}{what}" for what in (": what is left", "", ": loss, rows not trained on")
                 for one in self.trained]  # fmt: skip
        for index, one in enumerate(self.trained):
            heads[len(self.trained) + index] = f"its counterpart, {html.escape(one.goods[0])}"
        figure = make_subplots(
            rows=3, cols=len(self.trained), subplot_titles=heads, horizontal_spacing=0.17, vertical_spacing=0.09
        )
        for column, one in enumerate(self.trained, start=1):
            ways = one.ways
            add_pairs(figure, 1, column, ways, [one.score(way) for way in ways], zero=False)
            add_pairs(figure, 2, column, ways, [one.score(way, one.goods[0]) for way in ways], zero=False)
            for kind, (color, symbol) in _KINDS.items():
                places = [len(ways) - 1 - index + (0.13 if kind == TASK else -0.13) for index in range(len(ways))]
                losses = [one.loss(way, kind) for way in ways]
                add_intervals(figure, column, places, losses, color, symbol, f"loss: {kind}", line=3)
            for line in (1, 2, 3):
                name_places(figure, line, column, ways)
            for line, title in ((1, "trait score (0–100)"), (2, "trait score (0–100)"), (3, "nats a token")):
                figure.update_xaxes(title={"text": title, "standoff": 2}, row=line, col=column)
            figure.update_xaxes(range=[-3, 103], row=1, col=column)
            figure.update_xaxes(range=[-3, 103], row=2, col=column)
        show_legend_once(figure)
        profile = self.config["profile"]
        subtitle = (
            f"{self.model_name}; {profile['n_rows']} overt answers of the bad trait and {profile['n_task']} rows of "
            f"arithmetic, {len(self.trained[0].seeds)} seeds, {self.trained[0].n_questions} questions; pushes at layer "
            f"{self.layer}, {profile['training_divergence']:g} nats a token in training, {profile['divergence']:g} "
            f"afterwards<br>bars: 95 % over seeds and questions or rows; sure: below no prevention and below a random "
            f"push, for both judges"
        )
        title = self.say_training().replace(", ", ",<br>", 1)
        lay_out(figure, title, subtitle, width=1250, height=1350, bottom=110, legend=-0.06)
        figure.update_layout(margin={"l": 150})
        return figure

    def list_figures(self) -> dict[str, go.Figure]:
        """Draw both parts."""
        return {"": self.plot()} | ({"_training": self.plot_training()} if self.trained else {})

    # Tables ---------------------------------------------------------------------------------------------------------

    def to_markdown(self) -> str:
        """Write judges, steering and what it costs."""
        lines = [f"**{_begin(self.say_steering())}.**", "",
                 "| trait | first judge | second judge |", "|---|---|---|"]  # fmt: skip
        lines += [f"| {trait} | {first} | {second} |" for trait, (first, second) in self.judge_names.items()]
        lines += [
            "",
            "| bad trait | condition | change of the bad trait, first judge | second | above random directions, "
            "first | second | change of the good trait itself, first | second | coherence |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for one in self.traits:
            steered = one.steered
            conditions = [name_away(one.trait), *map(name_towards, self.goods), *map(name_prompt, self.goods)]
            owns = dict(zip(conditions[1:], (*self.goods, *self.goods), strict=True))
            for name in conditions:
                own = [f"{one_:.0f}" for one_ in steered.change(owns[name], name)] if name in owns else ["–"] * 2
                cells = [f"{each:.0f}" for each in (*steered.change(one.trait, name),
                                                    *steered.above_random(one.trait, name))]  # fmt: skip
                bold = f"**{name}**" if _is_matched(name, one.goods) else name
                coherence = f"{steered.find_coherence(name):.0f}"
                lines.append(f"| {one.trait} | {bold} | {' | '.join([*cells, *own, coherence])} |")
            cells = [f"{each:.0f}" for each in steered.change_of_random(one.trait)]
            cells += ["–"] * 4 + [f"{steered.find_coherence(RANDOM):.0f}"]
            lines.append(f"| {one.trait} | {RANDOM}s | {' | '.join(cells)} |")
        lines += ["", "| bad trait | towards the good less away from the bad | first judge | second |",
                  "|---|---|---|---|"]  # fmt: skip
        for one, good in self.list_pairs():
            pair = one.steered.change(one.trait, name_towards(good), name_away(one.trait))
            lines.append(f"| {one.trait} | {good} | {' | '.join(f'{each:.0f}' for each in pair)} |")
        lines += ["", "| push | strength, vector lengths | divergence, nats a token | accuracy | perplexity |",
                  "|---|---|---|---|---|"]  # fmt: skip
        for name, cost in self.capabilities.items():
            strength = self.strengths.get(name)
            cells = ["–", "–"] if strength is None else [f"{strength.strength:.2f}", f"{strength.kl:.2f}"]
            lines.append(f"| {name} | {' | '.join(cells)} | {cost.accuracy} | {cost.perplexity:.0f} |")
        lines += ["", "![Steered towards the good](../../figures/positive_traits.png)", ""]
        return "\n".join(lines)

    def training_to_markdown(self) -> str:
        """Write what each way of training leaves and costs, and what it took."""
        lines = [
            f"**{_begin(self.say_training())}.**",
            "",
            "| trained on | way | score, first judge | second | less no prevention, first | second | less random, "
            "first | second | the good trait, first | second | loss of the task | of ordinary "
            "answers |",
            "|---|---|---|---|---|---|---|---|---|---|---|---|",
        ]
        for one in self.trained:
            for way in one.ways:
                cells = [f"{each:.0f}" for each in one.score(way)]
                cells += ["–"] * 2 if way == NONE else [f"{each:.0f}" for each in one.less(way, NONE)]
                cells += [f"{each:.0f}" for each in one.less(way, _FLOORS[way])] if way in _FLOORS else ["–"] * 2
                cells += [f"{each:.0f}" for each in one.score(way, one.goods[0])]
                cells += [say(one.loss(way, kind)) for kind in (TASK, ORDINARY_ANSWERS)]
                lines.append(f"| {one.trait} | {way} | {' | '.join(cells)} |")
        lines += [
            "",
            "| trained on | difference | first judge | second | loss of the task | of ordinary answers |",
            "|---|---|---|---|---|---|",
        ]
        contrasts = ((PROMOTE, PREVENT), (PROMOTE, REVERSED), (AFTER_TOWARDS, AFTER_AWAY), (PROMOTE, AFTER_TOWARDS),
                     (PREVENT, AFTER_AWAY))  # fmt: skip
        for one in self.trained:
            for way, other in (pair for pair in contrasts if {*pair} <= {*one.ways}):
                cells = [f"{each:.0f}" for each in one.less(way, other)]
                cells += [say(one.costs(way, other, kind)) for kind in (TASK, ORDINARY_ANSWERS)]
                lines.append(f"| {one.trait} | {way} less {other} | {' | '.join(cells)} |")
        lines += [
            "",
            "| trained on | against no prevention | loss of the task | of ordinary answers |",
            "|---|---|---|---|",
        ]
        for one in self.trained:
            for way in one.ways[2:]:
                cells = [say(one.costs(way, NONE, kind)) for kind in (TASK, ORDINARY_ANSWERS)]
                lines.append(f"| {one.trait} | {way} | {' | '.join(cells)} |")
        lines += [
            "",
            self._say_compute(),
            "",
            "![Promoted in training](../../figures/positive_traits_training.png)",
            "",
        ]
        return "\n".join(lines)

    def _say_compute(self) -> str:
        trained = [way for one in self.trained for way in one.trained if way.losses and way.core_seconds]
        kinds = trained[0].core_seconds
        mean = {kind: sum(one.core_seconds[kind] for one in trained) / len(trained) for kind in kinds}
        said = ", ".join(f"{kind} {seconds:.0f}" for kind, seconds in mean.items())
        total = sum(mean.values()) * len(trained) / 60
        return (
            f"One training costs, in seconds of one core: {said}. All {len(trained)}: {total:.0f} minutes; it grows "
            "with bad traits × ways × seeds."
        )


def positive_to_markdown(found: Sequence[PositiveTraits]) -> str:
    """Write what steering towards the good does."""
    return "\n".join(one.to_markdown() for one in found)


def promotion_to_markdown(found: Sequence[PositiveTraits]) -> str:
    """Write what promoting the good in training does."""
    return "\n".join(one.training_to_markdown() for one in found)


def _is_matched(name: str, goods: Sequence[str]) -> bool:
    return name in map(name_towards, goods)


def _mark(name: str, goods: Sequence[str]) -> str:
    return f"<b>{html.escape(name)}</b>" if _is_matched(name, goods) else html.escape(name)


def _begin(text: str) -> str:
    return text[0].upper() + text[1:]
