"""Finished conversations measured turn by turn.

What acts while a response is sampled must not count as drift. So the finished conversation, users' turns and answers
alone, is read again by the plain model: without the condition's intervention, and without its system prompt. What is
measured is what the answers have become, and what they make of the model that reads them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from persona_lens.checking import checked
from persona_lens.checksums import hash_json, hash_tensors
from persona_lens.errors import InvalidArgumentError, ModelMismatchError
from persona_lens.evaluation.conversing import Conversations
from persona_lens.evaluation.drift import COHERENCE, LAST_PROMPT, LENGTH, REPETITION, RESPONSE, SURPRISE, Course, Drift
from persona_lens.evaluation.turns import TurnReadings, read_turns
from persona_lens.judges.judgement import Judge, identify_judge
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.hooks.points import check_unsteered
from persona_lens.models.hooks.sites import check_layer
from persona_lens.models.loading import describe_model
from persona_lens.run import Run
from persona_lens.storage import Shard
from persona_lens.vectors.persona_vector import PersonaVector

_WORDS_AT_ONCE = 3


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
