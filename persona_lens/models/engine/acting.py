"""What of an intervention acts at a token of a response that is being sampled."""

from __future__ import annotations

from persona_lens.errors import InvalidArgumentError
from persona_lens.models.engine.requests import Sampling
from persona_lens.models.hooks.intervention import NOTHING, Intervention
from persona_lens.models.hooks.positions import SamplingPositions
from persona_lens.models.text.thoughts import ThoughtFormat, ThoughtReader

BEFORE_RESPONSE = -1
"""The number of a prompt's tokens before its last, as windows count."""


def act_at(
    intervention: Intervention, positions: SamplingPositions, token: int, reader: ThoughtReader | None
) -> Intervention:
    """Return what is done at a token.

    Args:
        intervention: What is done to the response, with its windows.
        positions: Where it acts.
        token: As windows count: 0 is the prompt's last token, ``t`` the response's ``t``-th; ``BEFORE_RESPONSE``.
        reader: Of the response's tokens up to this one; None for a model without thoughts.
    """
    is_thinking = reader is not None and reader.is_thinking
    if token < 0:
        return intervention.at_token(token) if positions in ("prompt", "all") else NOTHING
    if (positions == "prompt" and token > 0) or (positions == "thought" and not is_thinking):
        return NOTHING
    if positions == "answer":
        if is_thinking:
            return NOTHING
        token -= 0 if reader is None else reader.n_before_answer
    return intervention.at_token(token)


def check_thoughts(form: ThoughtFormat | None, sampling: Sampling) -> None:
    """Refuse settings for thoughts where the model has none.

    Raises:
        InvalidArgumentError: Names the first.
    """
    asked = {"positions": "thought", "pooled": "thought", "judged": "thought"}
    wrong = [name for name, part in asked.items() if getattr(sampling, name) == part]
    if form is None and wrong:
        rule = "be another part of the response for a model whose template and tokens name no marker of a thought"
        raise InvalidArgumentError.of(wrong[0], rule, "thought")
