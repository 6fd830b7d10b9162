"""Models in, from wherever they are, with what identifies them."""

from persona_lens.models.loading.loading import (
    ADAPTER_RECORD,
    EMBEDDED_MODEL,
    ModelInfo,
    describe_model,
    find_blocks,
    fingerprint_hugging_face,
    load_hugging_face,
    load_model,
    resolve_dtype,
)

__all__ = [
    "ADAPTER_RECORD",
    "EMBEDDED_MODEL",
    "ModelInfo",
    "describe_model",
    "find_blocks",
    "fingerprint_hugging_face",
    "load_hugging_face",
    "load_model",
    "resolve_dtype",
]
