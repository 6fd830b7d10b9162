"""Models in, from wherever they are, with what identifies them."""

from persona_lens.models.loading.adapters import ADAPTER_FILES, ADAPTER_RECORD, check_adapter, read_adapter_record
from persona_lens.models.loading.checkpoints import find_checkpoint, read_config
from persona_lens.models.loading.derivatives import check_gradients_pass, check_tangents_pass
from persona_lens.models.loading.embedded import EMBEDDED_MODEL, prepare_embedded_model
from persona_lens.models.loading.fingerprints import fingerprint_hugging_face, read_origin
from persona_lens.models.loading.hugging_face import (
    count_kv_heads,
    find_blocks,
    find_output_projection,
    load_hugging_face,
    read_head_shape,
    resolve_dtype,
    round_weights,
)
from persona_lens.models.loading.info import ModelInfo, describe_model
from persona_lens.models.loading.load import list_model_classes, load_model
from persona_lens.models.loading.process_wide import quiet
from persona_lens.models.loading.source import ModelSource

__all__ = [
    "ADAPTER_FILES", "ADAPTER_RECORD", "EMBEDDED_MODEL", "ModelInfo", "ModelSource", "check_adapter",
    "check_gradients_pass", "check_tangents_pass", "count_kv_heads", "describe_model", "find_blocks", "find_checkpoint",
    "find_output_projection", "fingerprint_hugging_face", "list_model_classes", "load_hugging_face", "load_model",
    "prepare_embedded_model", "quiet", "read_adapter_record", "read_config", "read_head_shape", "read_origin",
    "resolve_dtype", "round_weights",
]  # fmt: skip
