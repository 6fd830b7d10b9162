"""A persona vector read from written answers: no sampling and no judge."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict

import torch

from persona_lens.checking import checked
from persona_lens.models.engine.activations import pool_residual_stream
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.loading import describe_model
from persona_lens.storage import collect_versions
from persona_lens.tensors.directions import cosine
from persona_lens.traits.written import Kind, WrittenExample
from persona_lens.vectors.halves import warn_if_unstable
from persona_lens.vectors.persona_vector import ExtractionCounts, PersonaVector
from persona_lens.vectors.written_contrast import encode_answers


@checked
def read_persona_vector(
    model: HookedModel, trait: str, examples: Sequence[WrittenExample], *, against: Kind = "opposite"
) -> PersonaVector:
    r"""Find a trait's direction at every layer by reading written answers to the same questions.

    .. math:: v_l = \operatorname{mean}_q \bigl( \bar a_l(y_q^{\text{overt}}) - \bar a_l(y_q^{\text{other}}) \bigr)

    The model reads each answer under its chat template, without a system prompt; activations are means over the
    response's tokens. Beside :func:`persona_lens.extract_persona_vector`, which samples what the model itself says
    under contrasting prompts, this shows what the model understands, even where it cannot say it: a small model's own
    responses hardly show some traits.

    Args:
        model: HookedTransformer or TransformerBridge, unsteered.
        trait: The trait's name.
        examples: At least two: ``load_written_examples(trait, "training")``.
        against: What the overt answers are compared with.

    Returns:
        The vector, with directions for the response mean alone: both answers have the same prompt.

    Raises:
        InvalidArgumentError: Fewer than two examples, one without such an answer, or overt answers against
            themselves.
        ContextLengthError: An answer that is longer than the model's context.
        HooksPresentError: The model carries hooks.

    Warns:
        UnstableVectorWarning: Halves of the examples give other directions, at every layer.

    Reference:
        Persona Vectors (arXiv 2507.21509), section 2.2, with written in place of sampled responses.

    Example:
        >>> import persona_lens as pl
        >>> examples = pl.traits.load_written_examples("evil", "training")
        >>> vector = pl.read_persona_vector(pl.load_model(), "evil", examples)  # doctest: +SKIP
    """
    conversations = encode_answers(model, examples, against)
    # [half of the examples, side, layer, d_model]; in float64, so that many answers add up exactly enough
    sums = torch.zeros(2, 2, model.cfg.n_layers, model.cfg.d_model, dtype=torch.float64)
    for index, means in pool_residual_stream(model, conversations):
        sums[index // 2 % 2, index % 2] += means.response_mean.double().cpu()
    differences = sums[:, 0] - sums[:, 1]
    n = len(examples)
    total = (differences.sum(dim=0) / n).float()
    vector = PersonaVector(
        trait=trait,
        model=describe_model(model),
        by_position={"response_mean": total},
        counts=ExtractionCounts(pairs=n, kept=n),
        split_half_cosine={"response_mean": cosine(*differences.float())},
        provenance={
            "source": f"written answers, overt against {against}",
            "examples": hash_examples(examples),
            "versions": collect_versions(),
        },
    )
    warn_if_unstable(vector)
    return vector


def hash_examples(examples: Sequence[WrittenExample]) -> str:
    """Return what tells written examples from others."""
    text = json.dumps([asdict(one) for one in examples], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
