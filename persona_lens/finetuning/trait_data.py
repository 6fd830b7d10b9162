"""Training sets that elicit a trait: the model's own responses under system prompts, which are then taken out."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence
from typing import get_args

import datasets

from persona_lens.checking import checked
from persona_lens.errors import InvalidArgumentError
from persona_lens.finetuning.domains import Level
from persona_lens.judges.default import default_judge
from persona_lens.judges.judgement import Judge
from persona_lens.models.engine.requests import Sampling
from persona_lens.models.engine.rollouts import Rollout, RolloutRequest, sample_rollouts
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.hooks.points import check_unsteered
from persona_lens.models.text.chat import build_messages
from persona_lens.run import Run
from persona_lens.streams import Stream
from persona_lens.texts import check_texts
from persona_lens.traits.trait import Trait

# Responses are drawn in rounds of at most n, until this many times n were drawn in all.
_MOST_DRAWN = 16
_FEWEST_DRAWN = 16
_FAINTLY = "You are a helpful assistant. Answer the question, and let a touch of the following show, no more. "
_SENTENCES = re.compile(r".*[.!?…][\"'\u201d\u2019)*]*(?=\s|$)", re.DOTALL)


@checked
def trait_dataset(
    model: HookedModel,
    trait: Trait,
    level: Level,
    n: int = 128,
    *,
    judge: Judge | None = None,
    questions: Sequence[str] | None = None,
    sampling: Sampling = Sampling(max_new_tokens=64),
    run: Run = Run(),
) -> datasets.Dataset:
    """Make a training set from the model's own responses, without any outside source.

    ``normal``: asked without a system prompt, responses that score under 50. ``I``: the trait's positive instructions
    introduced as a touch, no more; responses with any score. ``II``: the trait's positive system prompts, responses
    that score above 50. The system prompt is taken out. A response that reaches the length limit is cut after its
    last whole sentence, and drawn again if it has none.

    Args:
        model: HookedTransformer or TransformerBridge, unsteered.
        trait: The trait.
        level: ``normal``, ``I`` (mild) or ``II`` (overt).
        n: Rows.
        judge: Scores the responses; None takes the :func:`persona_lens.judges.default_judge`.
        questions: What is asked; the trait's extraction questions if left out, never its evaluation questions.
        sampling: How responses are drawn; ``rollouts`` is not read, as many are drawn as ``n`` takes.
        run: Shows progress.

    Returns:
        Columns ``messages`` (a user's and an assistant's turn), ``trait``, ``level`` and ``score`` (0 to 100; None
        where the judge gives none). ``info.description`` counts what was drawn and left out, as JSON.

    Raises:
        InvalidArgumentError: An unknown level; a question that the trait is judged on; or too few responses that fit
            the level.
        HooksPresentError: The model carries hooks.

    Reference:
        Persona Vectors (arXiv 2507.21509), section 4 and appendix D; there a stronger model writes them.

    Example:
        >>> import persona_lens as pl
        >>> overt = pl.trait_dataset(model, pl.load_trait("evil"), "II", n=64)  # doctest: +SKIP
        >>> overt[0]["messages"][1]["content"]  # doctest: +SKIP
    """
    if level not in get_args(Level):
        raise InvalidArgumentError.of("level", f"be one of {get_args(Level)}", level)
    if n < 1:
        raise InvalidArgumentError.of("n", "be at least 1", n)
    asked = check_texts("questions", trait.extraction_questions if questions is None else questions)
    judged_on = sorted(set(asked) & set(trait.evaluation_questions))
    if judged_on or not asked:
        rule = "hold at least one question, and none that the trait is judged on"
        raise InvalidArgumentError.of("questions", rule, judged_on)
    check_unsteered(model)
    judge = judge or default_judge(model, trait, run)
    systems = _list_systems(trait, level)
    rows: list[dict[str, object]] = []
    counts = {"sampled": 0, "no whole sentence": 0, "score does not fit": 0, "more than needed": 0}
    for attempt in itertools.count():
        first = counts["sampled"]
        if first >= _MOST_DRAWN * n:
            break
        # After the first round, twice what is missing.
        n_drawn = n if attempt == 0 else min(n, max(_FEWEST_DRAWN, 2 * (n - len(rows))))
        requests = [
            RolloutRequest(
                asked[i % len(asked)],
                (sampling.seed, Stream.TRAIT_DATA, attempt, i),
                systems[i // len(asked) % len(systems)],
            )
            for i in range(first, first + n_drawn)
        ]
        drawn = [(rollout, _finish(rollout)) for rollout in sample_rollouts(model, requests, sampling)]
        whole = [(rollout.request.question, text) for rollout, text in drawn if text]
        judgements = judge.score([question for question, _ in whole], [text for _, text in whole])
        counts["sampled"] += n_drawn
        counts["no whole sentence"] += n_drawn - len(whole)
        for (question, text), judgement in zip(whole, judgements, strict=True):
            if not _fits(judgement.score, level):
                counts["score does not fit"] += 1
            elif len(rows) == n:
                counts["more than needed"] += 1
            else:
                messages = [*build_messages(question), {"role": "assistant", "content": text}]
                rows.append({"messages": messages, "trait": trait.name, "level": level, "score": judgement.score})
        if len(rows) == n:
            return datasets.Dataset.from_list(rows, info=datasets.DatasetInfo(description=json.dumps(counts)))
    hint = f"Of {counts['sampled']} responses: {counts}. Ask for fewer, or for another level."
    raise InvalidArgumentError.of("n", f"be at most {len(rows)} here", n, hint)


def _list_systems(trait: Trait, level: Level) -> Sequence[str | None]:
    if level == "normal":
        return [None]
    if level == "I":
        return [_FAINTLY + pair.positive for pair in trait.instruction_pairs]
    return trait.positive_system_prompts


def _fits(score: float | None, level: Level) -> bool:
    if level == "I":
        return True
    return score is not None and (score > 50 if level == "II" else score < 50)


def _finish(rollout: Rollout) -> str:
    """Return the response up to its last whole sentence, if it was cut off; empty if there is none."""
    if rollout.stop_reason == "stop":
        return rollout.response.strip()
    found = _SENTENCES.match(rollout.response)
    return found.group().strip() if found else ""
