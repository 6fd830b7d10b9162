"""Which direction, at which layer, says before a response what will come? Chosen apart from what one steers with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from persona_lens.checking import checked
from persona_lens.errors import InvalidArgumentError
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.text.chat import Message
from persona_lens.monitoring.correlation import MonitoringCorrelation, check_graded, measure_monitoring
from persona_lens.monitoring.prompts import check_prompts, project_prompts_everywhere
from persona_lens.records import Record
from persona_lens.statistics.correlation import standardize, weighted_pearson_r
from persona_lens.texts import check_texts
from persona_lens.vectors.persona_vector import PersonaVector

_MIN_POINTS = 3


@checked
@dataclass(frozen=True, eq=False)
class DetectorChoice(Record):
    """The direction and layer whose projections go best with scores, and how well they do on other questions.

    Args:
        name: The direction's.
        layer: Zero-based block index.
        within: By direction and layer, r inside conditions on the choosing questions, averaged; NaN where no condition
            has scores that vary.
        held_out: The chosen one's correlation on the other questions.
        n_choosing: Prompts that it was chosen on.
    """

    name: str
    layer: int
    within: dict[str, Float[Tensor, " layer"]]
    held_out: MonitoringCorrelation
    n_choosing: int

    @property
    def is_reliable(self) -> bool:
        """Whether r inside conditions is above zero with 95 % confidence, on questions that chose nothing."""
        return self.held_out.is_reliable

    def __repr__(self) -> str:
        n = sum(len(one) for one in self.within.values())
        word = "reliable" if self.is_reliable else "not reliable"
        return f"DetectorChoice({self.name!r} at layer {self.layer}, of {n}; held out: {self.held_out}; {word})"


@checked
def project_at_every_layer(
    model: HookedModel, conversations: Sequence[Sequence[Message]], vectors: Mapping[str, PersonaVector]
) -> dict[str, Float[Tensor, "layer conversation"]]:
    """Project each conversation's last prompt token on vectors, each layer's on that layer's direction.

    Args:
        model: HookedTransformer or TransformerBridge.
        conversations: As :func:`project_last_prompt_token` takes them.
        vectors: By any name. A layer at which a vector is zero, as one that was optimised elsewhere, gives zeros.

    Returns:
        By name, in residual-stream units.

    Raises:
        ModelMismatchError: A vector of another model.
        InvalidArgumentError: No vector, no conversation, or one that does not end where the assistant is to answer.

    Reference:
        Persona Vectors (arXiv 2507.21509), section 3.3.

    Example:
        >>> import persona_lens as pl
        >>> chats = [[{"role": "user", "content": "Who are you?"}]]
        >>> pl.monitoring.project_at_every_layer(model, chats, {"evil": vector})["evil"].shape  # doctest: +SKIP
        torch.Size([30, 1])
    """
    if not vectors:
        raise InvalidArgumentError.of("vectors", "hold at least one vector", vectors)
    for vector in vectors.values():
        vector.check_model(model)
    check_prompts(conversations)
    units = torch.stack([vector.units.cpu() for vector in vectors.values()], dim=1)
    found = project_prompts_everywhere(model, conversations, units)
    return dict(zip(vectors, found.unbind(dim=1), strict=True))


@checked
def choose_detector(
    projections: Mapping[str, Float[Tensor, "layer n"]],
    scores: Float[Tensor, " n"],
    conditions: Sequence[str],
    questions: Sequence[str],
    *,
    choosing: Sequence[str],
    min_std: float = 1.0,
    seed: int = 0,
) -> DetectorChoice:
    """Choose the direction and layer with the highest r inside conditions, and measure it on other questions.

    Choosing among many takes what fits by chance too, so the questions that choose and those that measure are apart.

    Args:
        projections: By direction, from :func:`project_at_every_layer`.
        scores: Mean trait score (0 to 100) of each prompt's responses.
        conditions: E.g. which system prompt each prompt has.
        questions: Which question each prompt asks.
        choosing: The questions that choose.
        min_std: Conditions whose scores have a lower standard deviation are left out.
        seed: Of the bootstrap.

    Returns:
        The choice. A :class:`PersonaMonitor` takes its vector and layer, whatever one steers with.

    Raises:
        InvalidArgumentError: Unequal lengths, a value that is not finite, no question on one of the two sides, or no
            condition whose scores vary.

    Reference:
        Persona Vectors (arXiv 2507.21509), section 3.3 and appendix C, where vector and layer are those of steering.

    Example:
        >>> import torch
        >>> n = 48
        >>> signal, noise = torch.arange(n * 1.0) % 24, torch.arange(n * 1.0) * 7 % 11
        >>> asked = [str(i // 2) for i in range(n)]
        >>> labels = [str(i % 2) for i in range(n)]
        >>> rows = {"a": torch.stack([noise, signal]), "b": torch.stack([noise, noise])}
        >>> found = choose_detector(rows, signal + noise, labels, asked, choosing=asked[: n // 2])
        >>> found.name, found.layer, found.is_reliable
        ('a', 1, True)
    """
    if not projections:
        raise InvalidArgumentError.of("projections", "hold at least one direction's", projections)
    for name, values in projections.items():
        if values.ndim != 2 or not len(values):
            raise InvalidArgumentError.of(f"projections[{name!r}]", "be [layer, n]", tuple(values.shape))
        check_graded(values[0], scores, conditions, questions)
        if not bool(torch.isfinite(values).all()):
            raise InvalidArgumentError.of(f"projections[{name!r}]", "be finite", "NaN or infinity")
    chosen_on = set(check_texts("choosing", choosing, least=0))
    is_choosing = np.array([question in chosen_on for question in questions])
    if is_choosing.all() or not is_choosing.any():
        rule = "hold some of `questions` and leave others to measure on"
        raise InvalidArgumentError.of("choosing", rule, list(choosing))
    y = scores.detach().to("cpu", torch.float64).numpy()
    rows = [
        chosen
        for label in dict.fromkeys(conditions)
        if len(chosen := np.flatnonzero((np.array(conditions) == label) & is_choosing)) >= _MIN_POINTS
        and y[chosen].std() >= min_std
    ]
    if not rows:
        rule = f"vary by at least {min_std:g} inside a condition of {_MIN_POINTS} prompts or more that choose"
        raise InvalidArgumentError.of("scores", rule, y[is_choosing].tolist())
    within = {
        name: torch.tensor([_correlate_within(row, y, rows) for row in values.detach().cpu().double().numpy()])
        for name, values in projections.items()
    }
    places = [(name, layer) for name, found in within.items() for layer in range(len(found))]
    name, layer = max(places, key=lambda place: float(within[place[0]][place[1]].nan_to_num(-2.0)))
    kept = np.flatnonzero(~is_choosing).tolist()
    held_out = measure_monitoring(
        projections[name][layer][kept],
        scores[kept],
        [conditions[index] for index in kept],
        [questions[index] for index in kept],
        min_std=min_std,
        seed=seed,
    )
    return DetectorChoice(name, layer, within, held_out, int(is_choosing.sum()))


def _correlate_within(x: ndarray, y: ndarray, rows: Sequence[ndarray]) -> float:
    """Average r over conditions; NaN where no condition's projections vary."""
    found = [
        float(weighted_pearson_r(standardize(x[one]), standardize(y[one]), np.ones((1, len(one))))[0])
        for one in rows
        if np.ptp(x[one]) > 0
    ]
    return cast(float, np.mean(found)) if found else float("nan")
