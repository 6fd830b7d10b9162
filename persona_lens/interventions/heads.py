"""Inference-time intervention: chosen attention heads shifted along their directions."""

from __future__ import annotations

from persona_lens.checking import checked
from persona_lens.models.hooks.intervention import Intervention, Step
from persona_lens.tensors.operations import Add, plain_number
from persona_lens.vectors.heads import HeadChoice


@checked
def shift_heads(choice: HeadChoice, coefficient: float) -> Intervention:
    r"""Return what shifts chosen attention heads along their directions, by multiples of the standard deviation.

    .. math:: z_l^h \leftarrow z_l^h + \alpha \, \sigma_l^h \, \theta_l^h

    at each chosen head's output, before the output projection. The attention's output moves by
    ``alpha * sigma * theta @ W_O`` of each; all other heads are the same bit by bit.

    Args:
        choice: From :func:`persona_lens.vectors.choose_heads`.
        coefficient: :math:`\alpha`, in standard deviations; the paper's best is 15 with 48 heads. Negative steers away
            from the trait; 0 changes nothing at all.

    Returns:
        One addition a head, for sampling, hooks, ``with`` blocks and training; it adds up with other interventions.

    Raises:
        InvalidArgumentError: A coefficient that is not finite.

    Reference:
        Inference-Time Intervention (arXiv 2306.03341), equation 2.

    Example:
        >>> import persona_lens as pl
        >>> shifted = pl.interventions.shift_heads(choice, 5.0)  # doctest: +SKIP
        >>> with pl.hooked(model, shifted + pl.ablate(vector)):  # doctest: +SKIP
        ...     model.generate("Hello", max_new_tokens=20)
    """
    shifts = choice.sigmas[:, None] * choice.directions
    steps = (
        Step(layer, Add(shift, coefficient), head, label=f"Add {plain_number(coefficient):g} × sd of {choice.trait}")
        for (layer, head), shift in zip(choice.heads, shifts, strict=True)
    )
    return Intervention(tuple(steps), choice.model.fingerprint)
