"""Conversations of several turns with scripted users: what a model answers, turn by turn, under each condition.

An intervention acts as it does in a single turn: where ``Sampling.positions`` says, by default at each prompt's last
token and at the tokens of the response that is being given. Earlier answers are read again as text, without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from persona_lens.checking import checked
from persona_lens.errors import InvalidArgumentError, check_index
from persona_lens.evaluation.conditions import Condition
from persona_lens.models.engine.prefixes import PromptMemory
from persona_lens.models.engine.requests import Sampling
from persona_lens.models.engine.talks import WHOLE, Talk, take_turn
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.hooks.intervention import check_interventions
from persona_lens.models.hooks.points import check_unsteered
from persona_lens.models.loading import ModelInfo, describe_model
from persona_lens.models.text.chat import EncodedPrompt, Message, build_messages, encode_prompt, warn_of_controls
from persona_lens.models.text.tokens import stop_token_ids
from persona_lens.records import Record, format_table
from persona_lens.run import Run
from persona_lens.storage import Shard
from persona_lens.streams import Stream
from persona_lens.traits.users import UserScript

# Conversations of one condition held between two saves. Fixed, because they are computed as one batch.
_CONVERSATIONS_AT_ONCE = 32


@checked
@dataclass(frozen=True, eq=False, repr=False)
class Conversations(Record):
    """What scripted users said and what a model answered, turn by turn, under every condition.

    Args:
        model: The model.
        conditions: The conditions' names.
        scripts: The users' scripts.
        responses: Texts by condition, script, rollout and turn; fewer turns where a conversation ended early.
        n_tokens: Tokens of each response, without the stop token; 0 where there is none.
        ends: By condition, script and rollout, why a conversation ended before its script did: ``context full`` where
            the next turn and a response of full length would not fit the model's context, ``no answer`` after an empty
            response; empty for a whole one. Nothing is ever cut.
    """

    model: ModelInfo
    conditions: tuple[str, ...]
    scripts: tuple[UserScript, ...]
    responses: tuple[tuple[tuple[tuple[str, ...], ...], ...], ...]
    n_tokens: Int[Tensor, "condition script rollout turn"]
    ends: tuple[tuple[tuple[str, ...], ...], ...]

    @property
    def n_ended(self) -> int:
        """Conversations that ended before their script did."""
        return sum(end != WHOLE for condition in self.ends for script in condition for end in script)

    def write_messages(self, condition: int, script: int, rollout: int = 0) -> list[Message]:
        """Return a conversation as messages, users' and assistant's alone: no system prompt.

        Raises:
            InvalidArgumentError: No such condition, script or rollout.
        """
        n_conditions, n_scripts, n_rollouts, _ = self.n_tokens.shape
        check_index("condition", condition, n_conditions)
        check_index("script", script, n_scripts)
        check_index("rollout", rollout, n_rollouts)
        said = zip(self.scripts[script].turns, self.responses[condition][script][rollout], strict=False)
        messages: list[Message] = []
        for turn, response in said:
            messages += [{"role": "user", "content": turn}, {"role": "assistant", "content": response}]
        return messages

    def __repr__(self) -> str:
        n_conditions, n_scripts, n_rollouts, n_turns = self.n_tokens.shape
        ended = f"; {self.n_ended} ended early" if self.n_ended else ""
        return (
            f"Conversations({n_conditions} conditions × {n_scripts} scripts × {n_rollouts} rollouts, up to {n_turns} "
            f"turns with {self.model.name}{ended})"
        )

    def _repr_html_(self) -> str:
        rows = [
            (f"{self.conditions[0] or 'condition 0'}, {script.kind}", message["role"], message["content"])
            for index, script in enumerate(self.scripts[:1])
            for message in self.write_messages(0, index)
        ]
        return format_table(repr(self), rows, ("conversation", "who", "what"))


@checked
def converse(
    model: HookedModel,
    scripts: Sequence[UserScript],
    conditions: Sequence[Condition],
    *,
    sampling: Sampling = Sampling(),
    stream: Sequence[int] = (Stream.CONVERSATIONS,),
    run: Run = Run(),
) -> Conversations:
    """Hold conversations with scripted users, many at once, under every condition.

    All conditions see the same random numbers. What was computed of a conversation's earlier turns is kept for its
    next one, where no intervention reaches into prompts. Killed at any point, the same call goes on where it was, if
    ``run`` keeps shards.

    Args:
        model: HookedTransformer or TransformerBridge, unsteered: who answers where a condition names no other model.
        scripts: What users say, e.g. of :func:`persona_lens.traits.load_user_scripts`.
        conditions: At least one. A system prompt stands before the first turn; examples stand before it too.
        sampling: How each response is drawn; ``rollouts`` conversations a script.
        stream: Tells these draws from those of other work with the same seed.
        run: Keeps finished shards, shows progress and says who computes them.

    Returns:
        Every response. A conversation whose next turn and response would not fit the model's context ends there, by
        name: see :class:`Conversations`.

    Raises:
        InvalidArgumentError: No script, no condition, an intervention that does not fit, or a template argument that
            the chat template does not read.
        ContextLengthError: A first turn that leaves no room for a response.
        ModelMismatchError: An intervention made from vectors of another model.
        HooksPresentError: A model carries hooks.

    Example:
        >>> import persona_lens as pl
        >>> mine = pl.traits.UserScript("curt", ("What is yeast?", "Shorter."))
        >>> held = pl.evaluation.converse(pl.load_model(), [mine], [pl.Condition(name="as is")])  # doctest: +SKIP
        >>> held.write_messages(0, 0)  # doctest: +SKIP
    """
    for name, given in (("scripts", scripts), ("conditions", conditions)):
        if not given:
            raise InvalidArgumentError.of(name, "be a list of at least one", given)
    for one in {id(c.model or model): c.model or model for c in conditions}.values():
        check_unsteered(one)
        check_interventions(one, [c.intervention for c in conditions if (c.model or model) is one])
        _check_first_turns(one, scripts, [c for c in conditions if (c.model or model) is one], sampling)
    part = run.part(
        {
            "work": "conversations",
            "model": describe_model(model).to_json(),
            "conditions": [condition.describe() for condition in conditions],
            "scripts": [asdict(script) for script in scripts],
            "sampling": sampling.to_json(),
            "stream": list(stream),
            "at_once": _CONVERSATIONS_AT_ONCE,
        }
    )
    held = [(s, r) for s in range(len(scripts)) for r in range(sampling.rollouts)]
    chunks = [
        (c, at, held[at : at + _CONVERSATIONS_AT_ONCE])
        for c in range(len(conditions))
        for at in range(0, len(held), _CONVERSATIONS_AT_ONCE)
    ]
    pieces = [
        partial(
            part.load_or_compute,
            f"conversations-{c:04d}-{at:06d}",
            partial(_hold_chunk, conditions[c].model or model, conditions[c], scripts, chunk, sampling, stream),
        )
        for c, at, chunk in chunks
    ]
    rows: dict[tuple[int, int, int], dict[str, Any]] = {}
    with run.progress("conversations", len(conditions) * len(held)) as advance:
        for (c, _, chunk), shard in zip(chunks, run.compute_each(pieces), strict=True):
            rows |= {(c, *place): row for place, row in zip(chunk, shard.records, strict=True)}
            advance(len(chunk))
    return _gather(describe_model(model), conditions, scripts, sampling.rollouts, rows)


def _gather(
    model: ModelInfo,
    conditions: Sequence[Condition],
    scripts: Sequence[UserScript],
    n_rollouts: int,
    rows: dict[tuple[int, int, int], dict[str, Any]],
) -> Conversations:
    n_turns = max(len(script.turns) for script in scripts)
    n_tokens = torch.zeros(len(conditions), len(scripts), n_rollouts, n_turns, dtype=torch.long)
    for place, row in rows.items():
        n_tokens[place][: len(row["n_tokens"])] = torch.tensor(row["n_tokens"], dtype=torch.long)

    def take(name: str) -> list[list[list[Any]]]:
        return [
            [[rows[c, s, r][name] for r in range(n_rollouts)] for s in range(len(scripts))]
            for c in range(len(conditions))
        ]

    return Conversations(
        model=model,
        conditions=tuple(condition.name for condition in conditions),
        scripts=tuple(scripts),
        responses=tuple(tuple(tuple(map(tuple, one)) for one in condition) for condition in take("responses")),
        n_tokens=n_tokens,
        ends=tuple(tuple(map(tuple, condition)) for condition in take("end")),
    )


def _hold_chunk(
    model: HookedModel,
    condition: Condition,
    scripts: Sequence[UserScript],
    chunk: Sequence[tuple[int, int]],
    sampling: Sampling,
    stream: Sequence[int],
) -> Shard:
    """Hold a condition's conversations, those of a chunk's scripts and rollouts, turn by turn."""
    if not sampling.stop_tokens:
        sampling = replace(sampling, stop_tokens=stop_token_ids(model.tokenizer))
    # The seed leaves the condition out: all conditions see the same random numbers.
    held = [
        (scripts[s].turns, Talk(f"scripts[{s}]", (sampling.seed, *stream, s, r), _open(condition))) for s, r in chunk
    ]
    memory = PromptMemory(model.cfg.n_ctx)
    encoded: list[EncodedPrompt] = []
    for turn in range(max(len(turns) for turns, _ in held)):
        open_ones = [(talk, turns[turn]) for turns, talk in held if talk.end == WHOLE and turn < len(turns)]
        encoded += take_turn(
            model, [talk for talk, _ in open_ones], [said for _, said in open_ones], turn, sampling, memory,
            intervention=condition.intervention, template_arguments=condition.template_arguments,
        )  # fmt: skip
    warn_of_controls(encoded)
    return Shard(records=[{"responses": one.responses, "n_tokens": one.n_tokens, "end": one.end} for _, one in held])


def _open(condition: Condition) -> list[Message]:
    """Return what stands before the first turn."""
    return [*build_messages("", condition.system)[:-1], *condition.examples]


def _check_first_turns(
    model: HookedModel, scripts: Sequence[UserScript], conditions: Sequence[Condition], sampling: Sampling
) -> None:
    """Refuse scripts whose first turn leaves no room for a response, before any is sampled."""
    for condition in conditions:
        for script in scripts:
            messages: list[Message] = [*_open(condition), {"role": "user", "content": script.turns[0]}]
            encode_prompt(
                model.tokenizer, messages, n_ctx=model.cfg.n_ctx, reserve=sampling.max_tokens,
                template_arguments=condition.template_arguments,
            )  # fmt: skip
