"""Everything that touches TransformerLens: models, their text, their hooks, and running them."""

from persona_lens.models.engine.activations import (
    cache_residual_stream,
    pool_heads,
    pool_residual_stream,
    project_residual_stream,
)
from persona_lens.models.engine.answers import TextStream, ask
from persona_lens.models.engine.jacobian import transport_directions
from persona_lens.models.engine.requests import ResidualMeans, SampledResponse, SampleRequest, Sampling
from persona_lens.models.engine.rollouts import Rollout, RolloutRequest, sample_recorded_rollouts, sample_rollouts
from persona_lens.models.engine.sampling import sample_recorded_stream, sample_stream
from persona_lens.models.engine.unembedding import read_token_rows, unembed_directions
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.loading import ModelInfo, describe_model, load_model
from persona_lens.models.text.chat import (
    EncodedConversation,
    EncodedPrompt,
    Message,
    encode_conversation,
    encode_prompt,
)
from persona_lens.models.text.spans import Thought, TokenSpans
from persona_lens.models.text.templates import list_template_variables

__all__ = [
    "EncodedConversation", "EncodedPrompt", "HookedModel", "Message", "ModelInfo", "ResidualMeans", "Rollout",
    "RolloutRequest", "SampleRequest", "SampledResponse", "Sampling", "TextStream", "Thought", "TokenSpans", "ask",
    "cache_residual_stream", "describe_model", "encode_conversation", "encode_prompt", "list_template_variables",
    "load_model", "pool_heads", "pool_residual_stream", "project_residual_stream", "read_token_rows",
    "sample_recorded_rollouts", "sample_recorded_stream", "sample_rollouts", "sample_stream", "transport_directions",
    "unembed_directions",
]  # fmt: skip
