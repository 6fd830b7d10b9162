"""LoRA fine-tuning with Hugging Face's Trainer, with persona vectors added, ablated or penalised while it runs."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env

from persona_lens.checking import checked
from persona_lens.errors import InvalidArgumentError, ModelMismatchError, ShortTrainingWarning, UnsupportedModelError
from persona_lens.files import leaving_no_empty_folder, write_json
from persona_lens.finetuning.blocks import TrainingInterventions, check_every_token
from persona_lens.finetuning.finetuned import (
    CHECKPOINTS,
    Finetuned,
    check_space,
    check_writable,
    count_done,
    find_latest,
    read_finished,
    write_finished,
)
from persona_lens.finetuning.rows import Source, encode_training_rows
from persona_lens.finetuning.settings import FinetuneSettings, ProjectionPenalty, count_steps
from persona_lens.finetuning.tracking import Tracker
from persona_lens.finetuning.vector_tracking import (
    ModelShape,
    VectorTracker,
    compare_readings,
    save_readings,
    tell_trackers,
)
from persona_lens.models.hooks.intervention import NOTHING, Intervention, Step, check_steps, describe_values
from persona_lens.models.hooks.sharing import drawing
from persona_lens.models.loading import (
    ADAPTER_RECORD,
    ModelInfo,
    find_blocks,
    find_checkpoint,
    find_output_projection,
    fingerprint_hugging_face,
    load_hugging_face,
    read_head_shape,
    resolve_dtype,
    round_weights,
)
from persona_lens.models.loading.checkpoints import Checkpoint
from persona_lens.models.text.templates import (
    ChatSettings,
    TemplateArguments,
    freeze_arguments,
    pin_today,
    remember_settings,
)
from persona_lens.run import Run
from persona_lens.storage import collect_versions
from persona_lens.tensors.operations import Ablate

_N_LISTED = 1000
# On a CPU, up to about this many tokens, the fused attention kernel's backward pass is the slower one.
_SHORT = 256


@checked
@drawing()
def finetune(
    model: str | Path,
    data: Source,
    out: str | Path,
    *,
    settings: FinetuneSettings = FinetuneSettings(),
    intervention: Intervention = NOTHING,
    penalty: ProjectionPenalty | None = None,
    system: str | None = None,
    template_arguments: TemplateArguments | None = None,
    track: Tracker | VectorTracker | Sequence[Tracker | VectorTracker] | None = None,
    run: Run = Run(),
) -> Finetuned:
    """Fine-tune a model on conversations with LoRA; an intervention acts on its blocks meanwhile and is off afterwards.

    The loss is taken on the assistant's tokens alone. An intervention acts at every token that is not padding:
    ``steer(vector, layer=…, coefficient=+c)`` is preventative steering, ``ablate(vector)`` is CAFT.
    The same call again returns the finished adapter, or goes on from the latest whole checkpoint of a run that was
    killed. A finished adapter that is gone or damaged is trained again.
    Under ``accelerate launch`` it runs on several devices (on several CPU processes under ``torchrun`` with
    ``ACCELERATE_USE_CPU=true``, as accelerate starts those through MPI alone).

    Args:
        model: Name, folder or GGUF file, as for :func:`persona_lens.load_model`.
        data: Conversations: a ``datasets.Dataset``, a list of ``{"messages": [...]}``, a JSONL or Parquet file, or a
            Hub name. Rows that cannot be trained on are counted in the result.
        out: Folder for the adapter; new, empty, or that of this same run.
        settings: How to train; the paper's values if left out.
        intervention: What is done to the residual stream while training.
        penalty: A loss on the projection's shift.
        system: System prompt put in front of every conversation, in training only: preventative prompting.
        template_arguments: What the chat template reads besides the messages, such as ``{"enable_thinking": False}``,
            for the rows and for what is tracked. Give :func:`persona_lens.load_model` the same.
        track: What to measure while training, interventions off: projections; or a vector to extract again, and to
            follow if it says so; or one of either.
        run: Shows progress; what is finished is kept in ``out``.

    Returns:
        Where the adapter is, with the loss of each step.

    Raises:
        ModelNotFoundError: No such model.
        InvalidArgumentError: No row to train on, ``out`` holds something else, or the loss or the
            adapter's weights did not stay finite; float16 on a CPU; a template argument that the chat template does not
            read.
        UnsupportedModelError: A checkpoint that is quantised already.
        ModelMismatchError: A tracked vector of another model.
        OSError: ``out`` cannot be written to, or its disk is too full; before training begins.
        LayerOutOfRangeError: An intervention at a layer that the model does not have.
        InvalidArgumentError: An intervention with a window of a response: see :meth:`Intervention.during`.
        HookNeverFiredError: An intervention that no forward pass reached.

    Warns:
        ShortTrainingWarning: Training ends within the warm-up.
        DatedTemplateWarning: The chat template writes today's date, and ``template_arguments`` fix none.

    Reference:
        Persona Vectors (arXiv 2507.21509), sections 4 and 5, appendices D and J.

    Example:
        >>> import persona_lens as pl
        >>> tuned = pl.finetune("smollm2-135m-instruct", "rows.jsonl", "adapters/evil")  # doctest: +SKIP
        >>> model = pl.load_model("smollm2-135m-instruct", adapter=tuned.folder)  # doctest: +SKIP
    """
    # Slow to import, as PEFT is, and only needed here.
    from persona_lens.finetuning.trainer import (
        ProgressCallback,
        SealingCallback,
        TrackingCallback,
        add_adapter,
        make_trainer,
    )
    from persona_lens.finetuning.vector_callback import VectorCallback, encode_pairs

    check_every_token(intervention)
    tracker, vector_tracker = tell_trackers(track)
    folder = Path(out)
    # As the Trainer decides later; asked without `cpu`, each of several processes on a CPU would think it is alone.
    state = PartialState(cpu=not torch.accelerator.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU"))
    with leaving_no_empty_folder(folder):
        check_writable(folder)
        base = _load_base(model, settings, template_arguments, state.device)
        _check_fits(base, intervention, penalty, tracker)
        max_tokens = min(settings.max_tokens, base.info.n_ctx)
        encoded = encode_training_rows(base.tokenizer, data, max_tokens=max_tokens, system=system)
    config = {
        "model": base.info.name,
        "fingerprint": base.info.fingerprint,
        "settings": asdict(settings),
        "data": encoded.digest,
        "intervention": intervention.describe(),
        "penalty": None if penalty is None else describe_values(penalty),
        "track": None if tracker is None else tracker.describe(),
        "versions": collect_versions(),
    }
    config |= {"template_arguments": base.arguments} if base.arguments else {}
    answers = [] if vector_tracker is None else encode_pairs(vector_tracker, base.tokenizer, base.info.n_ctx)
    config |= {} if vector_tracker is None else {"track_vector": vector_tracker.describe(base.info, base.shape)}
    finished = read_finished(folder, config)
    if finished is not None:
        return finished
    if state.device.type == "cpu" and max(map(len, encoded.rows["input_ids"])) <= _SHORT:
        base.hf_model.set_attn_implementation("eager")
    torch.manual_seed(settings.seed)
    peft_model = add_adapter(base.hf_model, settings)
    adapter = peft_model.peft_config["default"]
    adapter.base_model_name_or_path = str(model)
    adapter.target_modules = sorted(adapter.target_modules)  # a set, which every process writes in another order
    check_space(folder, peft_model, settings)
    state.wait_for_everyone()  # every process has looked into the folder before one writes there
    if state.is_main_process:
        write_json(folder / ADAPTER_RECORD, {"config": config})
    active = TrainingInterventions(peft_model, intervention)
    checkpoints = folder / CHECKPOINTS
    trainer = make_trainer(peft_model, base.tokenizer, encoded, checkpoints, settings, base.dtype, penalty, state)
    tracking = None if tracker is None else TrackingCallback(tracker, base.tokenizer, active)
    if tracking is not None:
        trainer.add_callback(tracking)
    resumed = find_latest(folder)
    reading = None
    if vector_tracker is not None:
        reading = VectorCallback(vector_tracker, answers, base.info, base.shape, active, intervention, resumed)
        trainer.add_callback(reading)
    trainer.add_callback(SealingCallback())  # last, as it seals what the others keep
    n_steps = count_steps(len(encoded.rows), settings, state.num_processes)
    if n_steps <= settings.warmup_steps:
        warnings.warn(
            f"Training ends after {n_steps} optimiser step(s), within `warmup_steps`, {settings.warmup_steps}: the "
            "learning rate is still rising, and little is learnt. Train longer, or lower warmup_steps.",
            ShortTrainingWarning,
            stacklevel=4,  # past `drawing` and `checked`
        )
    with active.attached(), run.progress("fine-tuning (steps)", n_steps) as advance:
        trainer.add_callback(ProgressCallback(advance))
        trainer.train(resume_from_checkpoint=resumed)
        n_before = 0 if resumed is None else count_done(resumed)
        if trainer.state.global_step > n_before:  # killed after the last step, a run takes none any more
            active.check_fired()
    losses = tuple(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
    _check_stayed_finite(losses, peft_model, settings.learning_rate)
    result = Finetuned(
        folder=folder,
        losses=losses,
        n_rows=len(encoded.rows),
        left_out=encoded.count_bad(),
        n_with_controls=encoded.n_with_controls,
        bad_rows=tuple(encoded.bad[:_N_LISTED]),
        tracked=() if tracking is None else tuple(tracking.measured),
        config=config,
        turns=() if reading is None else compare_readings(reading.readings),
    )
    if state.is_main_process:
        if reading is not None:
            save_readings(reading.readings, reading.tracker.trait, base.info, folder)
        result = write_finished(result, peft_model)
    state.wait_for_everyone()
    return result


@dataclass(frozen=True, eq=False)
class _Base:
    """The model before training, in the precision that it is trained in.

    Args:
        hf_model: Its frozen weights in the precision of the autocast; PEFT keeps the adapter itself in float32.
        tokenizer: Its tokenizer, whose chat template reads ``arguments``.
        dtype: That precision.
        arguments: What the chat template reads besides the messages, today's date fixed.
        info: What the model is.
        shape: Layers, ``d_model``, heads and their size, as :func:`check_steps` takes them.
    """

    hf_model: Any
    tokenizer: Any
    dtype: torch.dtype
    arguments: str
    info: ModelInfo
    shape: ModelShape


def _load_base(
    model: str | Path, settings: FinetuneSettings, template_arguments: TemplateArguments | None, device: torch.device
) -> _Base:
    """Load what is trained.

    Raises:
        ModelNotFoundError: No such model.
        UnsupportedModelError: A checkpoint that is quantised already.
        InvalidArgumentError: float16 on a CPU; a template argument that the chat template does not read.
    """
    dtype = resolve_dtype(settings.dtype, device)
    checkpoint = find_checkpoint(str(model))
    _check_trainable(checkpoint, dtype, device)
    hf_model, tokenizer = load_hugging_face(checkpoint, "auto" if dtype == torch.float16 else dtype)
    fingerprint = fingerprint_hugging_face(hf_model)  # which a rounding to float16 would change
    if dtype == torch.float16:
        round_weights(hf_model, dtype)
    arguments = pin_today(tokenizer, freeze_arguments(tokenizer, template_arguments))
    remember_settings(tokenizer, ChatSettings(arguments))  # for all that is rendered later
    text = hf_model.config.get_text_config()
    path = Path(model).expanduser()
    info = ModelInfo(
        name=path.resolve().name if path.exists() else str(model),
        n_layers=len(find_blocks(hf_model)), d_model=text.hidden_size, n_ctx=text.max_position_embeddings,
        dtype=str(dtype)[6:], backend="hooked", fingerprint=fingerprint, weight_processing="none",
    )  # fmt: skip
    shape = (info.n_layers, info.d_model, *read_head_shape(text))
    return _Base(hf_model, tokenizer, dtype, arguments, info, shape)


def _check_fits(
    base: _Base, intervention: Intervention, penalty: ProjectionPenalty | None, tracker: Tracker | None
) -> None:
    """Refuse what is not made for this model.

    Raises:
        LayerOutOfRangeError: A layer that the model does not have.
        ModelMismatchError: A vector of another model.
        UnsupportedModelError: Heads of a model whose heads cannot be told apart.
    """
    penalized = () if penalty is None else (Step(penalty.layer, Ablate(penalty.direction)),)
    check_steps([*intervention.steps, *penalized], *base.shape)  # a penalty must fit as they do
    for at in intervention.sites:
        if at.head is not None:
            find_output_projection(base.hf_model, at.layer)
    made_from = {"track": tracker.fingerprints} if tracker is not None else {}
    made_from |= {"intervention": {intervention.fingerprint}} if intervention.fingerprint is not None else {}
    for given, fingerprints in made_from.items():
        if fingerprints != {base.info.fingerprint}:
            rule = f"come from vectors of the model that is trained, fingerprint {base.info.fingerprint}"
            raise ModelMismatchError.of(given, rule, sorted(fingerprints))


def _check_stayed_finite(losses: Sequence[float], peft_model: Any, learning_rate: float) -> None:
    """Refuse to write an adapter of a training that broke.

    Raises:
        InvalidArgumentError: A loss or a weight that is not finite.
    """
    if not all(map(math.isfinite, losses)):
        step = 1 + next(i for i, loss in enumerate(losses) if not math.isfinite(loss))
        hint = f"Training broke at step {step}; no adapter was written. Lower it, or train in float32."
        raise InvalidArgumentError.of("learning_rate", "keep the loss finite", learning_rate, hint)
    if not all(bool(weight.isfinite().all()) for weight in peft_model.parameters() if weight.requires_grad):
        hint = "They broke in the last step; no adapter was written. Lower it."
        raise InvalidArgumentError.of("learning_rate", "keep the adapter's weights finite", learning_rate, hint)


def _check_trainable(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> None:
    """Refuse what no gradient step can be taken on, before weights are read.

    Raises:
        UnsupportedModelError: Quantised weights.
        InvalidArgumentError: float16 on a CPU.
    """
    if checkpoint.quantization is not None:
        rule = "hold plain weights: LoRA is trained beside them here, and merged into them afterwards"
        hint = "Name the checkpoint that was quantised."
        raise UnsupportedModelError.of("model", rule, f"{checkpoint.name}: {checkpoint.quantization}", hint)
    if dtype == torch.float16 and device.type == "cpu":
        rule = "be 'auto', 'bfloat16' or 'float32' on a CPU, where torch scales no gradients of float16"
        raise InvalidArgumentError.of("settings.dtype", rule, "float16")
