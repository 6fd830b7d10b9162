"""Between two models: weights interpolated while a block runs, and adapters scaled or blended for good."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from persona_lens.checking import checked
from persona_lens.checksums import hash_file
from persona_lens.errors import FileFormatError, InvalidArgumentError, ModelMismatchError, UnsupportedModelError
from persona_lens.files import write_json
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.hooks.sharing import holding
from persona_lens.models.loading import ADAPTER_FILES, ADAPTER_RECORD, check_adapter, read_adapter_record

Factors = tuple[Mapping[str, Tensor], Mapping[str, Tensor]]  # by module: out × rank, rank × in

_CONFIG, _WEIGHTS = ADAPTER_FILES


@checked
@contextmanager
def interpolating(model: HookedModel, control: HookedModel, share: float) -> Iterator[HookedModel]:
    r"""Give a model, for the length of a ``with`` block, weights between a control model's and its own.

    .. math:: W(s) = (1 - s) \, W_\text{control} + s \, W_\text{model}

    in float32, rounded to the weights' dtype: share 0 is the control and share 1 the model, bit for bit. Weights that
    are the same in both are left alone; of the others a copy is kept meanwhile, and put back afterwards, by exception
    too.

    Args:
        model: HookedTransformer or TransformerBridge; changed inside the block.
        control: The model to be pulled towards, of the same class and shapes; not changed.
        share: :math:`s`, the model's own share: 0 to 1.

    Yields:
        The model.

    Raises:
        InvalidArgumentError: A share outside [0, 1].
        ModelMismatchError: Models whose weights do not correspond.
        UnsupportedModelError: Quantised weights.
        ModelBusyError: The model does something else.

    Reference:
        Wortsman et al., Robust fine-tuning of zero-shot models (arXiv 2109.01903).

    Example:
        >>> import persona_lens as pl
        >>> with pl.finetuning.interpolating(tuned, model, 0.5) as half:  # doctest: +SKIP
        ...     half.generate("Hello", max_new_tokens=20)
    """
    check_share(share)
    pairs = pair_weights(model, control)
    kept: list[tuple[Tensor, Tensor]] = []
    with holding(model):
        try:
            with torch.no_grad():
                for own, other in pairs.values():
                    other = other.to(own.device)
                    if not torch.equal(own, other):
                        kept.append((own, own.clone()))
                        own.copy_(torch.lerp(other.float(), own.float(), share))
            yield model
        finally:
            with torch.no_grad():
                for own, before in kept:
                    own.copy_(before)


def check_share(share: float, parameter: str = "share") -> None:
    """Refuse a share that is none.

    Raises:
        InvalidArgumentError: Outside [0, 1].
    """
    if not 0 <= share <= 1:
        raise InvalidArgumentError.of(parameter, "be in [0, 1]: 0 is the control, 1 the model", share)


def pair_weights(model: HookedModel, control: HookedModel) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the weights of two models side by side, by name, without copying any.

    Raises:
        ModelMismatchError: Weights of other names, shapes or dtypes.
        UnsupportedModelError: Weights that are no floating-point numbers in memory.
    """
    own, others = (_name_weights(one) for one in (model, control))
    hint = "Load both by the same name with the same `backend`, with or without an adapter."
    if differing := sorted(own.keys() ^ others.keys()):
        rule = "have the same weights as `model`"
        raise ModelMismatchError.of("control", rule, f"others, such as {', '.join(differing[:3])}", hint)
    for name, weight in own.items():
        if weight.shape != others[name].shape:
            rule = f"have weights of the same shapes as `model`, {tuple(weight.shape)} at {name}"
            raise ModelMismatchError.of("control", rule, tuple(others[name].shape), hint)
        for one in (weight, others[name]):
            if not one.is_floating_point() or one.itemsize < 2 or one.is_meta:
                got = f"{str(one.dtype).removeprefix('torch.')} at {name}"
                raise UnsupportedModelError.of("model", "have floating-point weights in memory", got)
        if weight.dtype != others[name].dtype:  # what lies between them would be rounding as well
            got, rule = (str(one.dtype).removeprefix("torch.") for one in (others[name], weight))
            hint = "Load both with the same `dtype`."
            raise ModelMismatchError.of("control", f"have weights of `model`'s dtype, {rule} at {name}", got, hint)
    return {name: (weight, others[name]) for name, weight in own.items()}


def _name_weights(model: Any) -> dict[str, Tensor]:
    return dict(model.named_parameters())


# Adapters ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class LoraFactors:
    """What a LoRA adapter adds to each weight, as the product of two thin matrices, the scale in the first.

    Args:
        config: The adapter's configuration.
        record: What :func:`persona_lens.finetune` wrote beside it; empty for another's.
        up: By module, ``out × rank`` in float32, times the adapter's scale.
        down: By module, ``rank × in``.
    """

    config: dict[str, Any]
    record: dict[str, Any]
    up: dict[str, Tensor]
    down: dict[str, Tensor]


@checked
def scale_adapter(adapter: str | Path, share: float, out: str | Path) -> Path:
    r"""Write a LoRA adapter that adds a share of what another adds: the base model is its control.

    .. math:: W(s) = W_\text{base} + s \, \Delta W

    Args:
        adapter: Folder of a LoRA adapter, as :func:`persona_lens.finetune` writes it.
        share: :math:`s`, 0 to 1.
        out: Folder for the new one; new or empty.

    Returns:
        The folder, for ``load_model(base, adapter=...)`` or for PEFT. Whoever trained the first and on what stays
        written beside it, with the share; what was measured while it was trained does not, as it is not of this one.

    Raises:
        InvalidArgumentError: A share outside [0, 1], or ``out`` holds something.
        FileFormatError: No whole LoRA adapter.
        UnsupportedModelError: An adapter that does more than add products of two matrices: DoRA, biases, whole modules.

    Reference:
        Hu et al., LoRA (arXiv 2106.09685).

    Example:
        >>> import persona_lens as pl
        >>> half = pl.finetuning.scale_adapter("adapters/evil", 0.5, "adapters/evil-half")  # doctest: +SKIP
        >>> model = pl.load_model("smollm2-135m-instruct", adapter=half)  # doctest: +SKIP
    """
    check_share(share)
    factors = read_factors(Path(adapter))
    up = {module: share * left for module, left in factors.up.items()}
    return _write_factors(factors, up, factors.down, {"share": share}, Path(out))


@checked
def blend_adapters(adapter: str | Path, control: str | Path, share: float, out: str | Path) -> Path:
    r"""Write a LoRA adapter between two of the same base: what :func:`interpolating` does, for good.

    .. math:: W(s) = W_\text{base} + (1 - s) \, \Delta W_\text{control} + s \, \Delta W

    Its rank is the sum of both.

    Args:
        adapter: Folder of a LoRA adapter.
        control: Folder of the accepted model's adapter.
        share: :math:`s`, the first one's share: 0 to 1.
        out: Folder for the new one; new or empty.

    Returns:
        The folder, for ``load_model(base, adapter=...)`` or for PEFT.

    Raises:
        InvalidArgumentError: A share outside [0, 1], or ``out`` holds something.
        ModelMismatchError: Adapters that were trained on other weights, or of other modules or shapes. What was not
            trained here does not say on which weights; then the base models' names are compared, without folders.
        FileFormatError: No whole LoRA adapter.
        UnsupportedModelError: As for :func:`scale_adapter`.

    Example:
        >>> import persona_lens as pl
        >>> pl.finetuning.blend_adapters("adapters/new", "adapters/accepted", 0.5, "adapters/half")  # doctest: +SKIP
    """
    check_share(share)
    first, second = read_factors(Path(adapter)), read_factors(Path(control))
    bases = [one.record.get("config", {}).get("fingerprint") for one in (first, second)]
    if None in bases:  # one that was not trained here
        names = [one.config.get("base_model_name_or_path") for one in (first, second)]
        bases = [None if name is None else Path(str(name)).name.casefold() for name in names]
    if None not in bases and bases[0] != bases[1]:
        raise ModelMismatchError.of("control", f"be trained on the same weights, {bases[0]}", bases[1])
    check_same_weights("control", (first.up, first.down), (second.up, second.down))
    up = {name: torch.cat([share * left, (1 - share) * second.up[name]], dim=1) for name, left in first.up.items()}
    down = {name: torch.cat([right, second.down[name]]) for name, right in first.down.items()}
    blended = {"share": share, "control": second.record.get("files", {}).get(_WEIGHTS)}
    return _write_factors(first, up, down, blended, Path(out))


def check_same_weights(parameter: str, first: Factors, second: Factors) -> None:
    """Refuse factors that change other weights than the first ones do."""
    if first[0].keys() != second[0].keys():
        differing = sorted(first[0].keys() ^ second[0].keys())
        raise ModelMismatchError.of(parameter, "change the same modules", f"others, such as {differing[0]}")
    for name in first[0]:
        shapes = [(up[name].shape[0], down[name].shape[1]) for up, down in (first, second)]
        if shapes[0] != shapes[1]:
            raise ModelMismatchError.of(parameter, f"change weights of shape {shapes[0]} at {name}", shapes[1])


def read_factors(adapter: Path) -> LoraFactors:
    """Read a LoRA adapter's matrices, without any model.

    Raises:
        FileFormatError: No whole LoRA adapter: damaged, with matrices that do not fit its rank or each other, or with
            weights that are not finite.
        UnsupportedModelError: One that does more than add products of two matrices, also to weights that were changed
            before it was trained (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA).
    """
    check_adapter(adapter)
    try:
        config = json.loads((adapter / _CONFIG).read_text(encoding="utf-8"))
        weights = load_file(adapter / _WEIGHTS)
        rank, alpha = config["r"], config["lora_alpha"]
    except Exception as error:  # whatever JSON and safetensors make of damaged files
        raise FileFormatError.of("adapter", "be a whole LoRA adapter", str(adapter), str(error)[:200]) from error
    plain: dict[str, tuple[Any, ...]] = {
        "use_dora": (False, None),
        "bias": ("none", None),
        "modules_to_save": (None, []),
    }
    plain |= {"rank_pattern": ({}, None), "alpha_pattern": ({}, None), "fan_in_fan_out": (False, None)}
    plain |= dict.fromkeys(("alora_invocation_tokens", "layer_replication", "target_parameters"), (None, []))
    # The other ways to begin take something off the base's weights first.
    plain |= {"init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal")}
    others = [name for name, allowed in plain.items() if config.get(name) not in allowed]
    ends = (".lora_A.weight", ".lora_B.weight")
    if others or config.get("peft_type") != "LORA" or not all(name.endswith(ends) for name in weights):
        rule = "add products of two matrices to linear layers, one rank and scale for all, and do nothing else"
        raise UnsupportedModelError.of("adapter", rule, f"{config.get('peft_type')}, {', '.join(others) or 'others'}")
    for name, value, kinds in (("r", rank, int), ("lora_alpha", alpha, int | float)):
        is_fit = isinstance(value, kinds) and not isinstance(value, bool) and abs(value) < 1e9  # not NaN either
        if not is_fit or (name == "r" and value < 1):
            rule = f"have {'a whole number of at least 1' if name == 'r' else 'a finite number'} as its `{name}`"
            raise FileFormatError.of("adapter", rule, repr(value))
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    down = {name.removesuffix(ends[0]): weight.float() for name, weight in weights.items() if name.endswith(ends[0])}
    up = {name.removesuffix(ends[1]): scale * one.float() for name, one in weights.items() if name.endswith(ends[1])}
    if up.keys() != down.keys() or not up:
        raise FileFormatError.of("adapter", "hold two matrices for each module", str(adapter))
    for name, left in up.items():
        right = down[name]
        if not left.ndim == right.ndim == 2 or not left.shape[1] == right.shape[0] == rank:
            rule, got = f"hold matrices of rank {rank}", f"{tuple(left.shape)} and {tuple(right.shape)} at {name}"
            raise FileFormatError.of("adapter", rule, got)
        if not bool(left.isfinite().all() and right.isfinite().all()):
            raise FileFormatError.of("adapter", "hold finite weights", f"NaN or infinity at {name}")
    return LoraFactors(config, read_adapter_record(adapter), up, down)


def _write_factors(
    source: LoraFactors, up: dict[str, Tensor], down: dict[str, Tensor], made: dict[str, Any], out: Path
) -> Path:
    """Write an adapter of scale 1, and beside it what was written beside the source."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InvalidArgumentError.of("out", "be a new or empty folder", str(out))
    out.mkdir(parents=True, exist_ok=True)
    rank = next(iter(down.values())).shape[0]
    write_json(out / _CONFIG, source.config | {"r": rank, "lora_alpha": rank, "use_rslora": False})
    weights = {f"{name}.lora_A.weight": one.contiguous() for name, one in down.items()}
    weights |= {f"{name}.lora_B.weight": one.contiguous() for name, one in up.items()}
    save_file(weights, out / _WEIGHTS, metadata={"format": "pt"})
    if source.record:
        files = {name: hash_file(out / name) for name in ADAPTER_FILES}
        record = {key: value for key, value in source.record.items() if key != "checksum"}
        record |= {key: [] for key in ("turns", "tracked") if key in record}  # of the training, not of what is made
        record |= {"config": source.record.get("config", {}) | {"interpolated": made}, "files": files}
        write_json(out / ADAPTER_RECORD, record)
    return out
