"""The dtype that a model is loaded in."""

from __future__ import annotations

import torch

from persona_lens.errors import InvalidArgumentError, describe_violation


def resolve_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """Return the dtype that a model will have.

    Args:
        dtype: ``auto``, ``float32``, ``bfloat16``, ``float16`` or a torch dtype.
        device: Where the model will run.

    Raises:
        InvalidArgumentError: Anything else.
    """
    named = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if isinstance(dtype, torch.dtype) and dtype in named.values():
        return dtype
    if dtype in named:
        return named[dtype]
    if dtype != "auto":
        raise InvalidArgumentError(describe_violation("dtype", f"be 'auto' or one of {sorted(named)}", dtype))
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    capabilities = torch.cpu.get_capabilities()
    in_hardware = device.type == "cpu" and any(capabilities.get(key) for key in ("avx512_bf16", "amx_bf16"))
    return torch.bfloat16 if in_hardware else torch.float32
