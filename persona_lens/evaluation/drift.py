"""Drift over turns: how a model's projections and judged traits change while a conversation goes on.

What acts while a response is sampled must not count as drift. So the finished conversation, users' turns and answers
alone, is read again by the plain model: without the condition's intervention, and without its system prompt. What is
measured is what the answers have become, and what they make of the model that reads them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from persona_lens.checking import checked
from persona_lens.checksums import hash_json, hash_tensors
from persona_lens.errors import InvalidArgumentError, ModelMismatchError
from persona_lens.evaluation.conversing import Conversations
from persona_lens.evaluation.turns import TurnReadings, read_turns
from persona_lens.judges.judgement import Judge, identify_judge
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.hooks.points import check_unsteered
from persona_lens.models.hooks.sites import check_layer
from persona_lens.models.loading import describe_model
from persona_lens.records import Record, format_table
from persona_lens.run import Run
from persona_lens.statistics import Interval
from persona_lens.statistics.missing import difference_interval, mean_interval
from persona_lens.storage import Shard
from persona_lens.vectors.persona_vector import PersonaVector

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

LAST_PROMPT, RESPONSE = "projection, last prompt token", "projection, response"
# What drifts in a small model whatever the user says, and so has to be looked at beside.
LENGTH, REPETITION, SURPRISE, COHERENCE = "length", "repetition", "surprise", "coherence"
# With fewer turns there is no slope to speak of.
_LEAST_TURNS = 3
_WORDS_AT_ONCE = 3


@checked
@dataclass(frozen=True, eq=False)
class Course(Record):
    """One thing measured at every turn.

    Args:
        name: What it is: a projection, a judge, or a confound.
        trait: The trait; empty for what is no trait's.
        unit: Its unit.
        values: Averaged over rollouts; NaN where there is none.
    """

    name: str
    trait: str
    unit: str
    values: Float[Tensor, "condition script turn"]

    @property
    def slopes(self) -> Float[Tensor, "condition script"]:
        """Least-squares slope a turn of each script, over the turns that are there; NaN where they are under three."""
        turns = torch.arange(self.values.shape[-1], dtype=torch.float64).expand(self.values.shape)
        present = ~self.values.isnan()
        n = present.sum(dim=-1, keepdim=True)
        y = self.values.double().nan_to_num()
        x = (turns - (turns * present).sum(dim=-1, keepdim=True) / n) * present
        slopes = (x * y).sum(dim=-1) / (x * x).sum(dim=-1)
        return torch.where(n[..., 0] >= _LEAST_TURNS, slopes, torch.nan).float()

    @property
    def means(self) -> Float[Tensor, "condition script"]:
        """Mean over each script's turns."""
        return self.values.nanmean(dim=-1)


@checked
@dataclass(frozen=True, eq=False, repr=False)
class Drift(Record):
    """How a model changes over the turns of conversations, for each kind of user and condition.

    Intervals are bootstrapped over scripts; against the control and between conditions they are paired by topic and by
    script.

    Args:
        conversations: What was said.
        control: The kind of user that the others are compared with.
        layers: By trait, the zero-based block index at which projections were read.
        courses: All that was measured, turn by turn.
    """

    conversations: Conversations
    control: str
    layers: dict[str, int]
    courses: tuple[Course, ...]

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of user."""
        return tuple(dict.fromkeys(script.kind for script in self.conversations.scripts))

    def find(self, name: str, trait: str = "") -> Course:
        """Return what was measured under a name, such as ``projection, response`` or a judge's.

        Raises:
            InvalidArgumentError: Nothing of that name.
        """
        found = [one for one in self.courses if (one.name, one.trait) == (name, trait)]
        if not found:
            known = sorted({f"{one.name!r} of {one.trait!r}" for one in self.courses})
            raise InvalidArgumentError.of("name", f"be one of {', '.join(known)}", (name, trait))
        return found[0]

    def by_turn(self, course: Course, kind: str | None, condition: int = 0) -> tuple[Interval, ...]:
        """Return the mean over a kind's scripts at each turn; None takes all kinds."""
        rows = self._list_scripts(kind)
        return tuple(
            mean_interval(turn) for turn in self._take(course, condition).values[condition, rows].unbind(dim=-1)
        )

    def slope(self, course: Course, kind: str | None, condition: int = 0) -> Interval:
        """Return the mean slope a turn over a kind's scripts; None takes all kinds."""
        return mean_interval(self._take(course, condition).slopes[condition, self._list_scripts(kind)])

    def against_control(self, course: Course, kind: str, condition: int = 0) -> Interval:
        """Return by how much steeper a kind's slope is than the control's, paired by topic; missing for the control.

        Scripts whose topic the control lacks are left out.
        """
        return self._pair(self._take(course, condition).slopes[condition], kind)

    def level_against_control(self, course: Course, kind: str, condition: int = 0) -> Interval:
        """Return by how much higher a kind's mean over all turns is than the control's, paired likewise."""
        return self._pair(self._take(course, condition).means[condition], kind)

    def change(self, course: Course, kind: str | None, condition: int) -> Interval:
        """Return by how much steeper a kind's slope is under a condition than under the first, paired by script."""
        slopes, rows = self._take(course, condition).slopes, self._list_scripts(kind)
        return difference_interval(slopes[condition, rows], slopes[0, rows])

    def level(self, course: Course, kind: str | None, condition: int) -> Interval:
        """Return by how much higher the mean over all turns is under a condition than under the first."""
        means, rows = self._take(course, condition).means, self._list_scripts(kind)
        return difference_interval(means[condition, rows], means[0, rows])

    def plot(self, condition: int = 0) -> Figure:
        """Draw every course turn by turn under one condition: a panel a course, a line a kind of user."""
        from persona_lens.plots.drift import plot_drift  # plotly is imported only when drawing

        return plot_drift(self, condition)

    def __repr__(self) -> str:
        return f"Drift({self.conversations!r}; {len(self.courses)} courses; control {self.control!r})"

    def _repr_html_(self) -> str:
        rows = [
            (f"{one.trait} {one.name}".strip(), kind, self.slope(one, kind), self.against_control(one, kind))
            for one in self.courses
            for kind in self.kinds
        ]
        head = ("measured", "user", "slope a turn", f"less {self.control}")
        return format_table(f"Drift, {self.conversations.conditions[0] or 'condition 0'}", rows, head)

    def _list_scripts(self, kind: str | None) -> list[int]:
        rows = [index for index, one in enumerate(self.conversations.scripts) if kind in (None, one.kind)]
        if not rows:
            raise InvalidArgumentError.of("kind", f"be one of {', '.join(self.kinds)}", kind)
        return rows

    def _pair(self, values: Float[Tensor, " script"], kind: str) -> Interval:
        if kind == self.control:
            return Interval.missing()
        topics = self._list_topics(self.control)
        pairs = [(row, topics[topic]) for topic, row in self._list_topics(kind).items() if topic in topics]
        first, second = ([pair[side] for pair in pairs] for side in (0, 1))
        return difference_interval(values[first], values[second])

    def _list_topics(self, kind: str) -> dict[str, int]:
        return {self.conversations.scripts[row].topic: row for row in self._list_scripts(kind)}

    def _take(self, course: Course, condition: int) -> Course:
        """Return a course that is of these conversations and has that condition."""
        n, n_scripts = len(self.conversations.conditions), len(self.conversations.scripts)
        if tuple(course.values.shape[:2]) != (n, n_scripts):
            rule = f"be of these {n} conditions and {n_scripts} scripts"
            raise InvalidArgumentError.of("course", rule, tuple(course.values.shape[:2]), "Take it from `find`.")
        if not 0 <= condition < n:
            raise InvalidArgumentError.of("condition", f"be in [0, {n}), as there are so many conditions", condition)
        return course


@checked
def measure_drift(
    model: HookedModel,
    conversations: Conversations,
    vectors: Mapping[str, PersonaVector],
    layers: Mapping[str, int],
    judges: Mapping[str, Sequence[Judge]],
    *,
    control: str = "neutral",
    run: Run = Run(),
) -> Drift:
    r"""Measure projections, judge scores and confounds at every turn of finished conversations.

    .. math:: p_t = \bar{h}_l(\text{turn } t) \cdot v_l / \lVert v_l \rVert

    at the token before each response, and as the mean over the response's tokens. The unsteered model reads users'
    turns and answers, without the condition's intervention and system prompt, so that neither counts as drift by
    itself. Beside it stand each judge's scores (of a response to the turn before it), coherence where the first judge
    gives one, and what drifts in small models anyway: a response's tokens, the share of its word triples that stand in
    the response before, and its surprise for the unsteered model in nats a token.

    Args:
        model: HookedTransformer or TransformerBridge, unsteered: who reads.
        conversations: What :func:`converse` returned.
        vectors: By trait, or by any name, such as an axis.
        layers: Zero-based block index for each of these names.
        judges: By trait, its judges; traits without vectors and vectors without judges are fine.
        control: The kind of user that others are compared with.
        run: Keeps what is finished and shows progress.

    Returns:
        All courses, with slopes and intervals.

    Raises:
        InvalidArgumentError: No vector, a vector without a layer, or a control that no script is of.
        ModelMismatchError: Conversations or a vector of another model.
        LayerOutOfRangeError: A layer that the model does not have.
        HooksPresentError: The model carries hooks.

    Example:
        >>> import persona_lens as pl
        >>> drift = pl.evaluation.measure_drift(model, held, {"evil": vector}, {"evil": 15}, {})  # doctest: +SKIP
        >>> drift.plot()  # doctest: +SKIP
    """
    if not vectors:
        raise InvalidArgumentError.of("vectors", "hold at least one vector", vectors)
    if set(layers) != set(vectors):
        raise InvalidArgumentError.of("layers", f"name the traits of `vectors`, {sorted(vectors)}", sorted(layers))
    kinds = sorted({script.kind for script in conversations.scripts})
    if control not in kinds:
        raise InvalidArgumentError.of("control", f"be a kind of user in the conversations, {', '.join(kinds)}", control)
    check_unsteered(model)
    info = describe_model(model)
    for name, vector in vectors.items():
        vector.check_model(model)
        check_layer(layers[name], vector.model.n_layers)
    if conversations.model.fingerprint != info.fingerprint:
        raise ModelMismatchError.of("conversations", f"be held with this model, {info.name}", conversations.model.name)
    units = torch.stack([vector.unit(layers[name]).cpu() for name, vector in vectors.items()])
    part = run.part(
        {
            "work": "drift",
            "model": info.to_json(),
            "conversations": hash_json(conversations.to_json()),
            "units": hash_tensors({"units": units}),
            "layers": [layers[name] for name in vectors],
        }
    )
    judged = {trait: list(some) for trait, some in judges.items()}
    courses = _read(model, conversations, units, layers, vectors, part)
    for trait, some in judged.items():
        for number, judge in enumerate(some):
            kept = part.part({"judge": identify_judge(judge), "trait": trait})
            courses += _judge(conversations, judge, trait, kept, has_coherence=number == 0)
    courses += [
        Course(LENGTH, "", "tokens", _average(conversations, conversations.n_tokens.float())),
        Course(REPETITION, "", "share of word triples", _average(conversations, _measure_repetition(conversations))),
    ]
    return Drift(conversations, control, dict(layers), tuple(courses))


def _list_places(conversations: Conversations) -> list[tuple[int, int, int]]:
    """Return the conversations that have an answer."""
    n_conditions, n_scripts, n_rollouts, _ = conversations.n_tokens.shape
    places = [(c, s, r) for c in range(n_conditions) for s in range(n_scripts) for r in range(n_rollouts)]
    return [(c, s, r) for c, s, r in places if conversations.responses[c][s][r]]


def _read(
    model: HookedModel,
    conversations: Conversations,
    units: Float[Tensor, "direction d_model"],
    layers: Mapping[str, int],
    names: Mapping[str, object],
    run: Run,
) -> list[Course]:
    places = _list_places(conversations)
    at = [layers[name] for name in names]

    def compute() -> Shard:
        read = read_turns(model, [conversations.write_messages(*place) for place in places], units, at)
        return Shard(_spread(conversations, places, read, len(units)))

    found = run.load_or_compute("readings", compute).tensors
    courses = [
        Course(what, trait, "residual-stream units", _average(conversations, found[key][index]))
        for index, trait in enumerate(names)
        for what, key in ((LAST_PROMPT, "last_prompt"), (RESPONSE, "response"))
    ]
    return [*courses, Course(SURPRISE, "", "nats a token", _average(conversations, found["surprise"][0]))]


def _spread(
    conversations: Conversations, places: Sequence[tuple[int, int, int]], read: Sequence[TurnReadings], n: int
) -> dict[str, Tensor]:
    shape = conversations.n_tokens.shape
    found = {
        "last_prompt": torch.full((n, *shape), torch.nan),
        "response": torch.full((n, *shape), torch.nan),
        "surprise": torch.full((1, *shape), torch.nan),
    }
    for (c, s, r), one in zip(places, read, strict=True):
        n_turns = len(one.surprise)
        found["last_prompt"][:, c, s, r, :n_turns] = one.last_prompt
        found["response"][:, c, s, r, :n_turns] = one.response
        found["surprise"][0, c, s, r, :n_turns] = one.surprise
    return found


def _judge(conversations: Conversations, judge: Judge, trait: str, run: Run, *, has_coherence: bool) -> list[Course]:
    places = [
        (*place, turn)
        for place in _list_places(conversations)
        for turn in range(len(conversations.responses[place[0]][place[1]][place[2]]))
    ]

    def compute() -> Shard:
        found = judge.score(
            [conversations.scripts[s].turns[turn] for _, s, _, turn in places],
            [conversations.responses[c][s][r][turn] for c, s, r, turn in places],
        )
        tensors = {}
        for name in ("score", "coherence"):
            values = torch.full(conversations.n_tokens.shape, torch.nan)
            for place, one in zip(places, found, strict=True):
                given = getattr(one, name)
                values[place] = torch.nan if given is None else given
            tensors[name] = values
        return Shard(tensors)

    found = run.load_or_compute("scores", compute).tensors
    courses = [Course(judge.name, trait, "score, 0 to 100", _average(conversations, found["score"]))]
    if has_coherence and not bool(found["coherence"].isnan().all()):
        courses.append(Course(COHERENCE, trait, "0 to 100", _average(conversations, found["coherence"])))
    return courses


def _average(
    conversations: Conversations, values: Float[Tensor, "condition script rollout turn"]
) -> Float[Tensor, "condition script turn"]:
    """Average over rollouts, where there is a response."""
    return torch.where(conversations.n_tokens > 0, values, torch.nan).nanmean(dim=2)


def _measure_repetition(conversations: Conversations) -> Float[Tensor, "condition script rollout turn"]:
    """Return the share of each response's word triples that stand in the response before it."""
    shares = torch.full(conversations.n_tokens.shape, torch.nan)
    for c, s, r in _list_places(conversations):
        triples = [_list_triples(text) for text in conversations.responses[c][s][r]]
        for turn in range(1, len(triples)):
            if triples[turn]:
                shares[c, s, r, turn] = len(triples[turn] & triples[turn - 1]) / len(triples[turn])
    return shares


def _list_triples(text: str) -> set[tuple[str, ...]]:
    words = text.lower().split()
    return {tuple(words[at : at + _WORDS_AT_ONCE]) for at in range(len(words) - _WORDS_AT_ONCE + 1)}
