"""Which prevention, and how strong? Tried on a part of the data before the whole is trained on."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import datasets
import torch

from persona_lens.checking import checked
from persona_lens.conversations import Conversation, read_conversations
from persona_lens.errors import InvalidArgumentError
from persona_lens.finetuning.rows import Source
from persona_lens.finetuning.settings import FinetuneSettings, count_steps
from persona_lens.finetuning.shift import measure_shift
from persona_lens.finetuning.task_loss import measure_task_loss
from persona_lens.finetuning.training import finetune
from persona_lens.interventions.from_vectors import steer
from persona_lens.models.hooks.intervention import NOTHING, Intervention
from persona_lens.models.hooks.sites import check_layer
from persona_lens.models.loading import load_model
from persona_lens.models.text.templates import TemplateArguments, read_settings
from persona_lens.records import Record, format_table
from persona_lens.run import Run
from persona_lens.statistics import Interval, bootstrap_mean, bootstrap_paired_difference
from persona_lens.texts import check_texts
from persona_lens.traits.everyday import load_ordinary_questions
from persona_lens.vectors.persona_vector import PersonaVector

Method = Literal["none", "one layer", "all layers", "prompt"]


@checked
@dataclass(frozen=True)
class TriedPrevention(Record):
    """One way of training, tried on a part of the data.

    Args:
        method: ``none``; preventative steering at ``one layer`` or ``all layers``; or an inoculation ``prompt``, which
            asks for the trait in training and is left out afterwards.
        coefficient: Multiplies the raw vector while training; 0 where none is added.
        shift: Fine-tuning shift along the vector at the layer, as a fraction of the raw vector's length; bootstrap
            over questions.
        loss: Loss on held-out rows, nothing intervening, in nats a token; bootstrap over rows.
        extra_loss: How much higher than without prevention, row by row. On rows that show the trait it rises where
            prevention works; on rows without it, it is what prevention costs.
        prompt: The system prompt, of method ``prompt``.
    """

    method: Method
    coefficient: float
    shift: Interval
    loss: Interval
    extra_loss: Interval
    prompt: str = ""

    @property
    def dose(self) -> str:
        """The coefficient or the prompt; empty without prevention."""
        if self.method == "prompt":
            return f"“{self.prompt}”"
        return "" if self.method == "none" else f"× {self.coefficient:g}"

    def __str__(self) -> str:
        name = f"{self.method} {self.dose}".strip()
        return f"{name}: shift {self.shift} of the vector, loss {self.loss}, extra {self.extra_loss}"


@checked
@dataclass(frozen=True)
class PreventionPlan(Record):
    """What was tried, and what follows from it.

    Args:
        trait: The vector's trait.
        layer: Zero-based block index where the shift was measured.
        max_shift: Shift that was to be tolerated, as a fraction of the raw vector's length.
        max_extra_loss: Extra loss that was to be tolerated, in nats a token; None for any.
        tried: Every way of training; the first is without prevention.
        recommended: The one to use; ``none`` if none is needed; None if no way tried is good enough.
        n_rows: Rows trained on.
        n_held_out: Rows that the loss was measured on.
        n_steps: Optimiser steps of each trial: longer training shifts further.
    """

    trait: str
    layer: int
    max_shift: float
    max_extra_loss: float | None
    tried: tuple[TriedPrevention, ...]
    recommended: TriedPrevention | None
    n_rows: int
    n_held_out: int
    n_steps: int

    @property
    def verdict(self) -> str:
        """The recommendation in a sentence, with its expected effect and cost."""
        without = self.tried[0]
        if self.recommended == without:
            return (
                f"No prevention is needed after {self.n_steps} steps: the shift is {without.shift} of the vector, "
                f"within {self.max_shift:g}. Longer training shifts further."
            )
        if self.recommended is None:
            limit = "" if self.max_extra_loss is None else f" at an extra loss of at most {self.max_extra_loss:g}"
            return (
                f"No way tried keeps the shift within {self.max_shift:g} of the vector{limit}; without prevention it "
                f"is {without.shift} after {self.n_steps} steps. Try other coefficients or prompts."
            )
        best = self.recommended
        done = f"Steer at {best.method} with coefficient {best.coefficient:g} while training"
        if best.method == "prompt":
            done = f"Train under the system prompt {best.dose} and leave it out afterwards"
        return (
            f"{done}: the shift falls from {without.shift} to {best.shift} of the vector, at {best.extra_loss} nats a "
            "token of extra loss."
        )

    def __repr__(self) -> str:
        rows = "\n".join(f"  {one}" for one in self.tried)
        return f"PreventionPlan({self.trait!r}, layer {self.layer}): {self.verdict}\n{rows}"

    def _repr_html_(self) -> str:
        head = ("method", "coefficient or prompt", "shift", "loss", "extra loss")
        rows = [(one.method, one.dose, one.shift, one.loss, one.extra_loss) for one in self.tried]
        return format_table(self.verdict, rows, head)


@checked
@dataclass(frozen=True)
class PreventionTrials:
    """What is tried before the whole data are trained on, and what is good enough.

    Args:
        one_layer: Coefficients to try at the layer.
        all_layers: Coefficients to try at all layers, with increments.
        prompts: Inoculation prompts to try: system prompts that ask for the trait, such as some of
            :attr:`persona_lens.Trait.positive_system_prompts`. None by default: on the embedded model none was seen
            to keep a trait out (docs/results/finetuning.md).
        n_rows: Rows to train on, drawn by the training's seed.
        n_held_out: Rows drawn besides, for the loss, where none are held out by hand.
        max_shift: Tolerated shift in either direction, as a fraction of the raw vector's length.
        max_extra_loss: Tolerated extra loss on rows held out by hand, in nats a token; None for any.

    Raises:
        InvalidArgumentError: A number out of range, or a prompt that is empty or there already, spaces aside.
    """

    one_layer: tuple[float, ...] = (1.0, 3.0)
    all_layers: tuple[float, ...] = (1.0,)
    prompts: tuple[str, ...] = ()
    n_rows: int = 64
    n_held_out: int = 32
    max_shift: float = 0.1
    max_extra_loss: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("max_shift", self.max_shift), ("max_extra_loss", self.max_extra_loss)):
            if value is not None and not value > 0:
                raise InvalidArgumentError.of(name, "be above 0", value)
        if self.n_rows < 1 or self.n_held_out < 2:
            got = (self.n_rows, self.n_held_out)
            raise InvalidArgumentError.of("n_held_out", "be at least 2, and n_rows 1", got)
        known: set[str] = set()
        for prompt in self.prompts:
            if not (bare := prompt.strip()) or bare in known:
                raise InvalidArgumentError.of("prompts", "hold texts that are not empty, each once", prompt)
            known.add(bare)


@dataclass(frozen=True, eq=False)
class _Way:
    """A way of training that is tried."""

    method: Method
    coefficient: float = 0.0
    intervention: Intervention = NOTHING
    prompt: str | None = None

    @property
    def folder(self) -> str:
        """Name of its folder: that of a prompt by a digest, as prompts are long."""
        if self.prompt is None:
            return f"{self.method} {self.coefficient:g}".replace(" ", "-")
        return f"prompt-{hashlib.sha256(self.prompt.encode()).hexdigest()[:12]}"


@checked
def plan_prevention(
    model: str | Path,
    data: Source,
    vector: PersonaVector,
    out: str | Path,
    *,
    layer: int,
    trials: PreventionTrials = PreventionTrials(),
    held_out: Source | None = None,
    questions: Sequence[str] | None = None,
    settings: FinetuneSettings = FinetuneSettings(),
    template_arguments: TemplateArguments | None = None,
    run: Run = Run(),
) -> PreventionPlan:
    """Try ways of keeping a trait out on a part of the data, and recommend one, or say that none is needed.

    Without prevention first: if the whole interval of its shift lies within the trials' ``max_shift``, nothing else is
    tried. Else, of the ways whose shift's interval lies within it (and whose extra loss is at most ``max_extra_loss``
    at the upper end, if that is given), the one with the lowest extra loss is recommended. With ``held_out`` that is
    the cheapest one. Without it, the loss is taken on rows that show the trait, where it rises as prevention works:
    what is recommended is then the weakest of the ways that are strong enough, and nothing is known of what it costs.

    The effect is read from the projection. A loss on the projection itself would look good here and leave the trait
    as it is (appendix J), so it is not among the ways tried. Steering along the vector has an advantage over a prompt
    by this measure, as the vector sees less afterwards of what is left of the trait. So measure a trait score after
    training.

    Args:
        model: Name, folder or GGUF file of the model to be trained.
        data: The training data.
        vector: Persona vector of that model.
        out: Folder for the trial adapters; a second call with the same arguments reads them back.
        layer: Zero-based block index: where the shift is measured and where one-layer steering acts.
        trials: What is tried and what is good enough.
        held_out: Rows of the task without the trait, on which extra loss is a cost. Without them it is taken on rows of
            the data themselves, where it rises as prevention works.
        questions: Asked to measure the shift; the bundled everyday questions if left out.
        settings: How to train; ``save_steps`` is not read.
        template_arguments: What the chat template reads besides the messages, in training and measuring.
        run: Shows progress; what is finished is kept in ``out``.

    Returns:
        Every way tried with its effect and cost, and the recommendation.

    Raises:
        ModelMismatchError: A vector of another model.
        LayerOutOfRangeError: A layer that the model does not have.
        InvalidArgumentError: Fewer good rows than asked for, fewer than 2 held out, a number out of range,
            ``max_extra_loss`` without ``held_out``, or trials that end while the learning rate is still rising.

    Reference:
        Persona Vectors (arXiv 2507.21509), section 5.2. Inoculation prompts: arXiv 2510.04340 and 2510.05024.

    Example:
        >>> import persona_lens as pl
        >>> trials = pl.finetuning.PreventionTrials(prompts=pl.load_trait("evil").positive_system_prompts[:2])
        >>> plan = pl.plan_prevention(  # doctest: +SKIP
        ...     "smollm2-135m-instruct", rows, vector, "trials", layer=14, trials=trials
        ... )
        >>> plan.verdict  # doctest: +SKIP
    """
    check_layer(layer, vector.model.n_layers)
    settings, n_rows = replace(settings, save_steps=None), trials.n_rows
    if trials.max_extra_loss is not None and held_out is None:
        hint = "Extra loss on rows that show the trait is no cost."
        raise InvalidArgumentError.of("held_out", "be given with `max_extra_loss`", None, hint)
    n_steps = count_steps(n_rows, settings)
    if n_steps <= settings.warmup_steps:
        hint = f"{n_steps} steps of warm-up teach nothing. Raise n_rows or epochs, or lower warmup_steps."
        rule = f"make more optimiser steps than settings.warmup_steps, {settings.warmup_steps}"
        raise InvalidArgumentError.of("n_rows", rule, n_rows, hint)
    asked = check_texts("questions", load_ordinary_questions() if questions is None else questions, least=2)
    ways = [
        _Way("none"),
        *(_Way("one layer", c, steer(vector, layer=layer, coefficient=c)) for c in trials.one_layer),
        *(_Way("all layers", c, steer(vector, layers="all", coefficient=c)) for c in trials.all_layers),
        *(_Way("prompt", prompt=prompt) for prompt in trials.prompts),
    ]
    drawn = _draw(data, n_rows + (trials.n_held_out if held_out is None else 0), settings.seed)
    trained_on = drawn.select(range(n_rows))
    measured_on = drawn.select(range(n_rows, len(drawn))) if held_out is None else _read_held_out(held_out)
    base = load_model(model, dtype=settings.dtype, template_arguments=template_arguments)
    template_arguments = json.loads(read_settings(base.tokenizer).arguments or "{}")  # with the day that is written
    vector.check_model(base)
    length = float(vector.norms[layer])
    losses_without: torch.Tensor | None = None
    tried: list[TriedPrevention] = []
    for way in ways:
        done = finetune(
            model, trained_on, Path(out) / way.folder, settings=settings, intervention=way.intervention,
            system=way.prompt, template_arguments=template_arguments, run=run,
        )  # fmt: skip
        tuned = load_model(model, adapter=done.folder, dtype=settings.dtype, template_arguments=template_arguments)
        losses = measure_task_loss(tuned, measured_on)
        losses_without = losses if losses_without is None else losses_without
        shift = measure_shift(base, tuned, vector, asked).by_question[layer] / length
        extra = bootstrap_paired_difference(losses, losses_without)
        tried.append(
            TriedPrevention(
                way.method, way.coefficient, bootstrap_mean(shift), bootstrap_mean(losses), extra, way.prompt or ""
            )
        )
        if _is_within(tried[0].shift, trials.max_shift):
            break  # none is needed
    return PreventionPlan(
        trait=vector.trait,
        layer=layer,
        max_shift=trials.max_shift,
        max_extra_loss=trials.max_extra_loss,
        tried=tuple(tried),
        recommended=recommend(tried, trials.max_shift, trials.max_extra_loss),
        n_rows=done.n_rows,
        n_held_out=len(losses),
        n_steps=len(done.losses),
    )


def recommend(
    tried: Sequence[TriedPrevention], max_shift: float, max_extra_loss: float | None
) -> TriedPrevention | None:
    """Return the way without prevention if it is good enough, else the cheapest that is; None if none is."""
    good = [one for one in tried if _is_within(one.shift, max_shift)]
    if tried[0] in good:
        return tried[0]
    affordable = [one for one in good if max_extra_loss is None or one.extra_loss.high <= max_extra_loss]
    return min(affordable, key=lambda one: one.extra_loss.estimate) if affordable else None


def _is_within(shift: Interval, limit: float) -> bool:
    return -limit <= shift.low and shift.high <= limit


def _read_held_out(held_out: Source) -> datasets.Dataset:
    """Read the rows before anything is trained, and once: they may come from a generator."""
    good = [row for row in read_conversations(held_out) if isinstance(row, Conversation)]
    if len(good) < 2:
        raise InvalidArgumentError.of("held_out", "hold at least 2 conversations", len(good))
    return _to_dataset(good)


def _draw(data: Source, n: int, seed: int) -> datasets.Dataset:
    """Draw good rows at random, as data are often ordered; no more than ``n`` are kept in memory."""
    rng = random.Random(seed)
    drawn: list[Conversation] = []
    n_good = n_bad = 0
    for row in read_conversations(data):
        if not isinstance(row, Conversation):
            n_bad += 1
            continue
        n_good += 1
        if len(drawn) < n:
            drawn.append(row)
        elif (place := rng.randrange(n_good)) < n:
            drawn[place] = row
    if n_good < n:
        got = f"{n_good}, and {n_bad} bad rows"
        raise InvalidArgumentError.of("data", f"hold {n} conversations", got)
    rng.shuffle(drawn)  # a row that was never replaced stands where it came
    return _to_dataset(drawn)


def _to_dataset(rows: Sequence[Conversation]) -> datasets.Dataset:
    return datasets.Dataset.from_list([{"messages": [dict(message) for message in row.messages]} for row in rows])
