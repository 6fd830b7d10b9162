"""Holding conversations in which the model is told, between turns, how its last answer read.

What is told stands in the user's turn, before the user's words, as many templates have no place for it elsewhere. An
answer is read as the user and the assistant spoke, without what was told: a note that names a trait is not the trait.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from persona_lens.checking import checked
from persona_lens.checksums import hash_json
from persona_lens.errors import ContextLengthError, InvalidArgumentError
from persona_lens.models.engine.prefixes import PromptMemory
from persona_lens.models.engine.requests import Sampling
from persona_lens.models.engine.talks import CONTEXT_FULL, WHOLE, Talk, take_turn
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.hooks.intervention import NOTHING, Intervention, check_interventions
from persona_lens.models.hooks.points import check_unsteered
from persona_lens.models.loading import describe_model
from persona_lens.models.text.chat import EncodedPrompt, Message, build_messages, encode_prompt, warn_of_controls
from persona_lens.models.text.templates import TemplateArguments, write_arguments
from persona_lens.models.text.tokens import stop_token_ids
from persona_lens.monitoring.answers import AnswerReading, check_knows_answers, encode_answer, read_answers
from persona_lens.monitoring.monitor import PersonaMonitor, check_fingerprint
from persona_lens.monitoring.reflected import ReflectedConversations, place_note
from persona_lens.monitoring.reflection import OtherMonitor, Readings, Reflection
from persona_lens.monitoring.streaming import ANSWERS
from persona_lens.run import Run
from persona_lens.storage import Shard
from persona_lens.streams import Stream
from persona_lens.traits.users import UserScript


@checked
def reflect(
    model: HookedModel,
    monitor: PersonaMonitor,
    scripts: Sequence[UserScript],
    reflections: Sequence[Reflection] = (Reflection(),),
    *,
    sampling: Sampling = ANSWERS,
    intervention: Intervention = NOTHING,
    template_arguments: TemplateArguments | None = None,
    stream: Sequence[int] = (Stream.REFLECTION,),
    run: Run = Run(),
) -> ReflectedConversations:
    """Hold conversations in which the model is told, before each turn but the first, how its last answer read.

    All reflections see the same random numbers, and go on from the same first answers, which are drawn once. Killed at
    any point, the same call goes on where it was, if ``run`` keeps shards.

    Args:
        model: HookedTransformer or TransformerBridge, unsteered: the one that the monitor was calibrated on.
        monitor: Reads the answers; calibrated with ``responses``.
        scripts: What users say, e.g. of :func:`persona_lens.traits.load_user_scripts`.
        reflections: What is told: at least one; by default the reading in words.
        sampling: How each response is drawn; ``rollouts`` conversations a script.
        intervention: What is done to the responses while they are drawn; nothing is done while they are read.
        template_arguments: What the chat template reads besides the messages.
        stream: Tells these draws from those of other work with the same seed.
        run: Keeps finished shards, shows progress and says who computes them.

    Returns:
        Every response with its readings, and what was told. A conversation whose next turn and response would not fit
        the model's context, or whose response does not once it is rendered anew to be read, ends there, by name.

    Raises:
        InvalidArgumentError: No script or too few for a placebo, no reflection, a monitor that does not know how
            ordinary answers read, an intervention that does not fit, a template argument that nothing reads, or a
            wording or a source of one's own that returns something else than it has to.
        ModelMismatchError: A monitor or an intervention of another model.
        ContextLengthError: A first turn that leaves no room for a response.
        HooksPresentError: The model carries hooks.

    Warns:
        ControlTextWarning: What is said or told spells control tokens.

    Example:
        >>> import persona_lens as pl
        >>> users = pl.traits.load_user_scripts("hostile")
        >>> held = pl.monitoring.reflect(model, monitor, users)  # doctest: +SKIP
        >>> held.write_messages(0, 0)  # doctest: +SKIP
    """
    for name, given in (("scripts", scripts), ("reflections", reflections)):
        if not given:
            raise InvalidArgumentError.of(name, "be a list of at least one", given)
    check_unsteered(model)
    info = describe_model(model)
    check_fingerprint("model", monitor.model, info)
    check_knows_answers("monitor", monitor)
    for one in reflections:
        if isinstance(one.source, OtherMonitor):
            check_fingerprint("model", one.source.monitor.model, info)
    check_interventions(model, [intervention])
    least = max(one.source.least_conversations for one in reflections)
    if len(scripts) < least:
        raise InvalidArgumentError.of("scripts", f"be at least {least}, for the readings that are told", len(scripts))
    if not sampling.stop_tokens:
        sampling = replace(sampling, stop_tokens=stop_token_ids(model.tokenizer))
    for script in scripts:
        encode_prompt(
            model.tokenizer, build_messages(script.turns[0]), n_ctx=model.cfg.n_ctx, reserve=sampling.max_tokens,
            template_arguments=template_arguments,
        )  # fmt: skip
    part = run.part(
        {
            "work": "reflection",
            "model": info.to_json(),
            "monitor": hash_json(monitor.to_json()),
            "scripts": [asdict(script) for script in scripts],
            "sampling": sampling.to_json(),
            "intervention": intervention.digest,
            "template_arguments": write_arguments(template_arguments),
            "stream": list(stream),
        }
    )
    work = _Work(model, monitor, tuple(scripts), sampling, intervention, template_arguments, tuple(stream))
    n = sampling.rollouts
    openings = [partial(part.load_or_compute, f"first-{r:04d}", partial(_hold_first, work, r)) for r in range(n)]
    rows: dict[tuple[int, int], list[dict[str, Any]]] = {}
    with run.progress("conversations", len(scripts) * n * (1 + len(reflections))) as advance:
        first = []
        for shard in run.compute_each(openings):
            first.append(shard.records)
            advance(len(scripts))
        places = [(c, r) for c in range(len(reflections)) for r in range(n)]
        rest = [
            partial(
                part.part({"reflection": reflections[c].describe()}).load_or_compute,
                f"rest-{r:04d}",
                partial(_hold_rest, work, reflections[c], r, first[r]),
            )
            for c, r in places
        ]
        for place, shard in zip(places, run.compute_each(rest), strict=True):
            rows[place] = shard.records
            advance(len(scripts))
    return _gather(work, reflections, rows)


@dataclass(frozen=True, eq=False)
class _Work:
    """What all conversations share."""

    model: HookedModel
    monitor: PersonaMonitor
    scripts: tuple[UserScript, ...]
    sampling: Sampling
    intervention: Intervention
    template_arguments: TemplateArguments | None
    stream: tuple[int, ...]


class _Held:
    """A conversation under way, with how its answers read.

    Args:
        script: The user's.
        talk: As the model sees it.
    """

    def __init__(self, script: UserScript, talk: Talk) -> None:
        self.script = script
        self.talk = talk
        self.turns: list[dict[str, Any]] = []  # what is known of each answer, as JSON-able values

    def go_on(self, row: dict[str, Any]) -> None:
        """Go on from where a conversation ended that nothing was told in."""
        for said, turn in zip(self.script.turns, row["turns"], strict=False):
            self.talk.note(said, turn["response"], turn["n_tokens"])
        self.turns = list(row["turns"])
        self.talk.end = row["end"]

    def take_back(self) -> None:
        """End before the last turn, as its answer has no room."""
        del self.talk.messages[-2:], self.talk.responses[-1], self.talk.n_tokens[-1]
        self.talk.end = CONTEXT_FULL

    @property
    def row(self) -> dict[str, Any]:
        return {"turns": self.turns, "end": self.talk.end}

    @property
    def plain_messages(self) -> list[Message]:
        """The conversation without what the model was told."""
        messages: list[Message] = []
        for said, response in zip(self.script.turns, self.talk.responses, strict=False):
            messages += [{"role": "user", "content": said}, {"role": "assistant", "content": response}]
        return messages

    def read_last(self, traits: Sequence[str]) -> Readings:
        found = zip(traits, self.turns[-1]["projections"], self.turns[-1]["quantiles"], strict=True)
        return tuple(AnswerReading(*one) for one in found)


def _begin(work: _Work, rollout: int) -> list[_Held]:
    # The seed leaves the reflection out: all see the same random numbers.
    return [
        _Held(script, Talk(f"scripts[{s}]", (work.sampling.seed, *work.stream, s, rollout)))
        for s, script in enumerate(work.scripts)
    ]


def _hold_first(work: _Work, rollout: int) -> Shard:
    """Hold each conversation's first turn, before which nothing is told."""
    held = _begin(work, rollout)
    warn_of_controls(_take(work, held, 0, [("", None)] * len(held), PromptMemory(work.model.cfg.n_ctx)))
    return Shard(records=[one.row for one in held])


def _hold_rest(work: _Work, reflection: Reflection, rollout: int, first: Sequence[dict[str, Any]]) -> Shard:
    """Hold the other turns, telling the model something before each."""
    held, traits = _begin(work, rollout), [one.trait for one in work.monitor.traits]
    for one, row in zip(held, first, strict=True):
        one.go_on(row)
    memory = PromptMemory(work.model.cfg.n_ctx)
    encoded: list[EncodedPrompt] = []
    for turn in range(1, max(len(script.turns) for script in work.scripts)):
        going = [one for one in held if one.talk.end == WHOLE and turn < len(one.script.turns)]
        if not going:
            break
        seed = (work.sampling.seed, Stream.REFLECTION_PLACEBO, *work.stream, rollout, turn)
        chosen = reflection.source.choose([one.read_last(traits) for one in going], partial(_read, work, going), seed)
        if len(chosen) != len(going):
            rule = f"choose what each of {len(going)} conversations is told, None for nothing"
            raise InvalidArgumentError.of("source", rule, chosen)
        told = [("", None) if given is None else (_write(reflection, given), given) for given in chosen]
        encoded += _take(work, going, turn, told, memory)
    warn_of_controls(encoded)
    return Shard(records=[one.row for one in held])


def _take(
    work: _Work, held: Sequence[_Held], turn: int, told: Sequence[tuple[str, Readings | None]], memory: PromptMemory
) -> list[EncodedPrompt]:
    """Take a turn of some conversations, and read what was answered; returns the prompts."""
    said = [place_note(note, one.script.turns[turn]) for one, (note, _) in zip(held, told, strict=True)]
    encoded = take_turn(
        work.model, [one.talk for one in held], said, turn, work.sampling, memory,
        intervention=work.intervention, template_arguments=work.template_arguments,
    )  # fmt: skip
    for one in held:
        if len(one.talk.responses) > turn and not _can_read(work, one):
            one.take_back()
    answered = [(one, *note) for one, note in zip(held, told, strict=True) if len(one.talk.responses) > turn]
    if not answered:
        return encoded
    found = _read(work, [one for one, *_ in answered], work.monitor)
    for (one, note, given), readings in zip(answered, found, strict=True):
        one.turns.append(
            {
                "response": one.talk.responses[-1],
                "n_tokens": one.talk.n_tokens[-1],
                "note": note,
                "given": None if given is None else [reading.quantile for reading in given],
                "projections": [reading.projection for reading in readings],
                "quantiles": [reading.quantile for reading in readings],
            }
        )
    return encoded


def _write(reflection: Reflection, given: Readings) -> str:
    note = reflection.wording.write(given)
    if not isinstance(note, str):
        raise InvalidArgumentError.of("wording", "write a text, empty for nothing", note)
    return note


def _can_read(work: _Work, one: _Held) -> bool:
    """Whether a last answer fits the context as it is read, where its text may have other tokens than were drawn."""
    try:
        encode_answer(work.model, one.plain_messages, one.talk.name, template_arguments=work.template_arguments)
    except ContextLengthError:
        return False
    return True


def _read(work: _Work, held: Sequence[_Held], monitor: PersonaMonitor) -> list[Readings]:
    """Read last answers, without what the model was told."""
    plain = [one.plain_messages for one in held]
    return read_answers(work.model, monitor, plain, template_arguments=work.template_arguments)


def _gather(
    work: _Work, reflections: Sequence[Reflection], rows: dict[tuple[int, int], list[dict[str, Any]]]
) -> ReflectedConversations:
    n_turns = max(len(script.turns) for script in work.scripts)
    shape = (len(reflections), len(work.scripts), work.sampling.rollouts, n_turns)
    n_tokens = torch.zeros(shape, dtype=torch.long)
    read: dict[str, Tensor] = {
        name: torch.full((len(work.monitor.traits), *shape), torch.nan)
        for name in ("projections", "quantiles", "given")
    }
    for (c, r), conversations in rows.items():
        for s, row in enumerate(conversations):
            for t, turn in enumerate(row["turns"]):
                n_tokens[c, s, r, t] = turn["n_tokens"]
                for name, into in read.items():
                    if turn[name] is not None:
                        into[:, c, s, r, t] = torch.tensor(turn[name])

    def take(name: str) -> tuple[tuple[tuple[tuple[str, ...], ...], ...], ...]:
        return tuple(
            tuple(
                tuple(tuple(turn[name] for turn in rows[c, r][s]["turns"]) for r in range(shape[2]))
                for s in range(shape[1])
            )
            for c in range(shape[0])
        )

    return ReflectedConversations(
        model=describe_model(work.model),
        traits=tuple(one.trait for one in work.monitor.traits),
        reflections=tuple(one.name for one in reflections),
        scripts=work.scripts,
        responses=take("response"),
        notes=take("note"),
        n_tokens=n_tokens,
        ends=tuple(
            tuple(tuple(rows[c, r][s]["end"] for r in range(shape[2])) for s in range(shape[1]))
            for c in range(shape[0])
        ),
        **read,
    )
