"""A model's ordinary responses drawn cool and hot: noise that a judge must not take for a trait."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from persona_lens.checking import checked
from persona_lens.judges.validation import TemperatureSamples
from persona_lens.models.engine.requests import Sampling
from persona_lens.models.engine.rollouts import RolloutRequest, sample_rollouts
from persona_lens.models.hooked_model import HookedModel
from persona_lens.streams import Stream
from persona_lens.texts import check_texts


@checked
def sample_temperatures(
    model: HookedModel,
    questions: Sequence[str],
    *,
    sampling: Sampling = Sampling(max_new_tokens=48, temperature=0.7),
    hot: float = 1.4,
) -> TemperatureSamples:
    """Ask each question without a system prompt, once at the usual temperature and once at one that makes text wander.

    Args:
        model: HookedTransformer or TransformerBridge, unsteered.
        questions: What is asked.
        sampling: How the cool responses are drawn; one a question.
        hot: Temperature of the hot ones.

    Returns:
        Both, for :func:`persona_lens.judges.fit_embedding_judge` and :func:`persona_lens.judges.validate`.

    Raises:
        InvalidArgumentError: No questions, or one text in place of a list.
        HooksPresentError: The model carries hooks.

    Example:
        >>> import persona_lens as pl
        >>> questions = [one.question for one in pl.traits.load_written_examples("evil", "judging")]
        >>> pl.judges.sample_temperatures(model, questions)  # doctest: +SKIP
    """
    questions = check_texts("questions", questions)
    requests = [
        RolloutRequest(question, (sampling.seed, Stream.TEMPERATURES, index))
        for index, question in enumerate(questions)
    ]
    cool, heated = (
        tuple(one.response for one in sample_rollouts(model, requests, replace(sampling, temperature=at)))
        for at in (sampling.temperature, hot)
    )
    return TemperatureSamples(tuple(questions), cool, heated)
