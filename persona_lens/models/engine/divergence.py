"""The one token divergence: how far two next-token distributions lie apart."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def token_divergence(
    reference: Float[Tensor, "*batch vocab"], other: Float[Tensor, "*batch vocab"]
) -> Float[Tensor, "*batch"]:
    r"""Return the KL divergence from one next-token distribution to another, in nats, at each position.

    .. math:: \mathrm{KL}(p \,\|\, q) = \sum_v p(v) \, (\log p(v) - \log q(v))

    Computed in float32.

    Args:
        reference: Logits of ``p``, e.g. without an intervention.
        other: Logits of ``q``, e.g. with it.
    """
    log_p, log_q = (logits.float().log_softmax(dim=-1) for logits in (reference, other))
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1)
