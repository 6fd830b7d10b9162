"""Conversations in which a model was told how it read: what was said, told and read, turn by turn."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from persona_lens.checking import checked
from persona_lens.errors import InvalidArgumentError, check_index
from persona_lens.judges.judgement import Judge
from persona_lens.models.loading import ModelInfo
from persona_lens.models.text.chat import Message
from persona_lens.records import Record, format_table
from persona_lens.statistics import Interval
from persona_lens.statistics.missing import mean_interval
from persona_lens.traits.users import UserScript


@checked
@dataclass(frozen=True, eq=False, repr=False)
class ReflectedConversations(Record):
    """What users said, what a model was told and answered, and how its answers read.

    Args:
        model: The model.
        traits: The monitor's traits.
        reflections: Names of what was told.
        scripts: The users' scripts.
        responses: Texts by reflection, script, rollout and turn; fewer turns where a conversation ended early.
        notes: What stood before the user's words at each of these turns; empty where nothing was told.
        n_tokens: Tokens of each response, without the stop token; 0 where there is none.
        projections: Of each response, its mean over tokens, read without what the model was told and without
            intervention; NaN where there is none.
        quantiles: Fraction of ordinary answers that read lower, likewise.
        given: The quantile that the wording was given before each response, whether it told it or not; NaN where there
            was none.
        ends: By reflection, script and rollout, why a conversation ended before its script did: ``context full`` or
            ``no answer``; empty for a whole one. Nothing is ever cut.
    """

    model: ModelInfo
    traits: tuple[str, ...]
    reflections: tuple[str, ...]
    scripts: tuple[UserScript, ...]
    responses: tuple[tuple[tuple[tuple[str, ...], ...], ...], ...]
    notes: tuple[tuple[tuple[tuple[str, ...], ...], ...], ...]
    n_tokens: Int[Tensor, "reflection script rollout turn"]
    projections: Float[Tensor, "trait reflection script rollout turn"]
    quantiles: Float[Tensor, "trait reflection script rollout turn"]
    given: Float[Tensor, "trait reflection script rollout turn"]
    ends: tuple[tuple[tuple[str, ...], ...], ...]

    @property
    def n_ended(self) -> int:
        """Conversations that ended before their script did."""
        return sum(bool(end) for reflection in self.ends for script in reflection for end in script)

    def write_messages(self, reflection: int, script: int, rollout: int = 0) -> list[Message]:
        """Return a conversation as the model saw it, with what it was told before the user's words.

        Raises:
            InvalidArgumentError: No such reflection, script or rollout.
        """
        n_reflections, n_scripts, n_rollouts, _ = self.n_tokens.shape
        check_index("reflection", reflection, n_reflections)
        check_index("script", script, n_scripts)
        check_index("rollout", rollout, n_rollouts)
        told, answered = (each[reflection][script][rollout] for each in (self.notes, self.responses))
        messages: list[Message] = []
        for turn, note, response in zip(self.scripts[script].turns, told, answered, strict=False):
            messages += [
                {"role": "user", "content": place_note(note, turn)},
                {"role": "assistant", "content": response},
            ]
        return messages

    def score(self, judge: Judge) -> Float[Tensor, "reflection script rollout turn"]:
        """Let a judge score every response to what the user said, without what the model was told.

        Args:
            judge: Its opinion is asked.

        Returns:
            Trait scores, 0 to 100; NaN where the judge gave none or there is no response.
        """
        places = self._list_places()
        found = judge.score(
            [self.scripts[s].turns[turn] for _, s, _, turn in places],
            [self.responses[c][s][r][turn] for c, s, r, turn in places],
        )
        scores = torch.full(self.n_tokens.shape, torch.nan)
        for place, one in zip(places, found, strict=True):
            scores[place] = torch.nan if one.score is None else one.score
        return scores

    def compare(
        self, values: Float[Tensor, "reflection script rollout turn"], reflection: int, other: int = 0
    ) -> Interval:
        """Return by how much higher something is in the answers under one reflection than under another.

        Of each script's answers from the second on, the first that anything can be told before; paired by turn and
        rollout, so that conversations that end early are compared as far as both go; averaged by script, with a
        bootstrap interval over scripts.

        Args:
            values: Measured of each answer, such as ``projections[0]`` or what :meth:`score` returns; NaN is left out.
            reflection: Index of the one.
            other: Index of the other.

        Returns:
            The mean difference; missing where fewer than two scripts have both.

        Raises:
            InvalidArgumentError: Values of another shape, or no such reflection.
        """
        if values.shape != self.n_tokens.shape:
            rule = f"be {tuple(self.n_tokens.shape)}: reflection, script, rollout, turn"
            raise InvalidArgumentError.of("values", rule, tuple(values.shape))
        check_index("reflection", reflection, len(self.reflections))
        check_index("other", other, len(self.reflections))
        difference = (values[reflection] - values[other])[..., 1:]
        return mean_interval(difference.flatten(start_dim=1).nanmean(dim=-1))

    def _list_places(self) -> list[tuple[int, int, int, int]]:
        return [
            (c, s, r, turn)
            for c, reflection in enumerate(self.responses)
            for s, script in enumerate(reflection)
            for r, rollout in enumerate(script)
            for turn in range(len(rollout))
        ]

    def __repr__(self) -> str:
        n_reflections, n_scripts, n_rollouts, n_turns = self.n_tokens.shape
        ended = f"; {self.n_ended} ended early" if self.n_ended else ""
        return (
            f"ReflectedConversations({n_reflections} reflections × {n_scripts} scripts × {n_rollouts} rollouts, up to "
            f"{n_turns} turns with {self.model.name}, read for {', '.join(self.traits)}{ended})"
        )

    def _repr_html_(self) -> str:
        rows = [
            (self.reflections[index] or f"reflection {index}", message["role"], message["content"])
            for index in range(len(self.reflections))
            for message in self.write_messages(index, 0)
        ]
        return format_table(repr(self), rows, ("conversation", "who", "what"))


def place_note(note: str, said: str) -> str:
    """Put what the model is told before the user's words."""
    return f"({note})\n\n{said}" if note else said
