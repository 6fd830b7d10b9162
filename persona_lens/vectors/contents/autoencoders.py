"""Sparse autoencoders in the format of SAELens, read without it: two files in a folder, neither of them code."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from persona_lens.checking import checked
from persona_lens.errors import ApiError, FileFormatError, InvalidArgumentError
from persona_lens.tensors.directions import normalize

_CONFIG, _WEIGHTS = "cfg.json", "sae_weights.safetensors"
_HOW_TO_FOLD = (
    "Fold the scale into the weights with SAELens and save it again: "
    "sae = SAE.load_from_disk(folder); sae.fold_activation_norm_scaling_factor(scale); sae.save_model(folder), "
    "where scale is sqrt(d_model) over the mean length of the activations that it was trained on."
)
Activation = Literal["standard", "topk", "jumprelu"]
"""What follows the encoder: a ReLU, the ``k`` highest of it, or it above a threshold a feature."""


@checked
@dataclass(frozen=True, eq=False)
class SparseAutoencoder:
    r"""A sparse autoencoder of the residual stream after one layer.

    .. math:: f = \sigma\bigl((h - b_{\text{dec}}) W_{\text{enc}} + b_{\text{enc}}\bigr), \quad
        \hat h = f W_{\text{dec}} + b_{\text{dec}}

    Args:
        encoder: ``W_enc``.
        encoder_bias: ``b_enc``.
        decoder: ``W_dec``: a feature's direction in the residual stream is its row.
        decoder_bias: ``b_dec``.
        activation: ``sigma``.
        k: Features that ``topk`` leaves; None for the others.
        threshold: Above which ``jumprelu`` leaves a feature; None for the others.
        subtracts_bias: Whether the decoder's bias is taken from the input.
        layer: Zero-based block index whose output it was trained on; None if nothing says so.
        source: Whence it comes, with what its configuration says.

    Raises:
        InvalidArgumentError: Shapes that do not fit each other, or an activation without what it needs.
    """

    encoder: Float[Tensor, "d_model feature"]
    encoder_bias: Float[Tensor, " feature"]
    decoder: Float[Tensor, "feature d_model"]
    decoder_bias: Float[Tensor, " d_model"]
    activation: Activation
    k: int | None = None
    threshold: Float[Tensor, " feature"] | None = None
    subtracts_bias: bool = True
    layer: int | None = None
    source: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the fields."""
        n_features, d_model = self.decoder.shape
        shapes = {
            "encoder": (self.encoder, (d_model, n_features)), "encoder_bias": (self.encoder_bias, (n_features,)),
            "decoder_bias": (self.decoder_bias, (d_model,)), "decoder": (self.decoder, (n_features, d_model)),
        }  # fmt: skip
        if self.threshold is not None:
            shapes["threshold"] = (self.threshold, (n_features,))
        for name, (values, shape) in shapes.items():
            if tuple(values.shape) != shape or 0 in shape:
                raise InvalidArgumentError.of(name, f"have shape {shape}, as `decoder` has it", tuple(values.shape))
            if not bool(values.isfinite().all()):
                raise InvalidArgumentError.of(name, "be finite", "NaN or infinity")
        if self.activation == "topk" and (self.k is None or not 1 <= self.k <= n_features):
            raise InvalidArgumentError.of("k", f"be in [1, {n_features}] for `topk`", self.k)
        if self.activation == "jumprelu" and self.threshold is None:
            raise InvalidArgumentError.of("threshold", "be given for `jumprelu`", None)

    @property
    def n_features(self) -> int:
        """How many features there are."""
        return len(self.decoder)

    @property
    def directions(self) -> Float[Tensor, "feature d_model"]:
        """The decoder's rows, of length 1."""
        return normalize(self.decoder)

    def encode(self, activations: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch feature"]:
        """Return how strongly each feature is there, in float32; what does not fire is 0."""
        if activations.shape[-1] != self.decoder.shape[1]:
            raise InvalidArgumentError.of("activations", f"have width {self.decoder.shape[1]}", activations.shape[-1])
        centred = activations.float() - self.decoder_bias if self.subtracts_bias else activations.float()
        before = centred @ self.encoder + self.encoder_bias
        if self.activation == "topk":
            assert self.k is not None
            highest = before.topk(self.k, dim=-1)
            return torch.zeros_like(before).scatter(-1, highest.indices, highest.values.relu())
        if self.activation == "jumprelu":
            assert self.threshold is not None
            return before.relu() * (before > self.threshold)
        return before.relu()

    def decode(self, features: Float[Tensor, "*batch feature"]) -> Float[Tensor, "*batch d_model"]:
        """Return the activations that features stand for."""
        if features.shape[-1] != self.n_features:
            raise InvalidArgumentError.of("features", f"have width {self.n_features}", features.shape[-1])
        decoded: Tensor = features.float() @ self.decoder + self.decoder_bias
        return decoded

    def __repr__(self) -> str:
        kind = f"{self.activation}, k = {self.k}" if self.k else self.activation
        place = "" if self.layer is None else f", layer {self.layer}"
        return f"SparseAutoencoder({self.n_features} features × d_model {self.decoder.shape[1]}, {kind}{place})"


@checked
def read_autoencoder(folder: str | Path) -> SparseAutoencoder:
    """Read a sparse autoencoder that SAELens wrote, with or without SAELens installed.

    Args:
        folder: Holds ``cfg.json`` and ``sae_weights.safetensors``, as ``save_model``, ``save_inference_model`` and the
            hub have them. Architectures ``standard``, ``topk`` and ``jumprelu``, as which batch-top-k ones are saved
            too; of activations as they are: one that was trained on scaled ones has to be folded first.

    Raises:
        FileNotFoundError: One of the files is missing.
        FileFormatError: A file that is damaged, an autoencoder of another kind, or one whose biases and thresholds are
            for scaled activations; :func:`load_autoencoder` knows more, by SAELens' own code.

    Reference:
        SAELens (github.com/decoderesearch/SAELens), the format of its version 6; earlier versions' top-k files say so
        in other words, which are understood.

    Example:
        >>> import persona_lens as pl
        >>> pl.vectors.read_autoencoder("my-sae")  # doctest: +SKIP
        SparseAutoencoder(1024 features × d_model 576, topk, k = 16, layer 15)
    """
    folder = Path(folder)
    for name in (_CONFIG, _WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"`folder` must hold {name}. Got {str(folder)!r}.")
    try:
        config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
        weights = load_file(folder / _WEIGHTS)
    except (ValueError, RecursionError, SafetensorError) as error:
        raise FileFormatError(
            f"`folder` must hold {_CONFIG} and {_WEIGHTS} as SAELens writes them: {error}."
        ) from error
    if not isinstance(config, dict):
        raise FileFormatError.of("folder", f"hold an object in {_CONFIG}", type(config).__name__)
    return _build(config, weights, str(folder))


@checked
def load_autoencoder(release: str, sae_id: str) -> SparseAutoencoder:
    """Load a published sparse autoencoder by name, through SAELens: the extra ``sae``.

    Args:
        release: A release that SAELens lists, or a repository of the hub.
        sae_id: Which of the release's.

    Raises:
        ImportError: SAELens is not installed, or it does not fit the TransformerLens that is: as of version 6.54 it
            needs TransformerLens 3. :func:`read_autoencoder` reads a folder without it.
        ApiError: No such autoencoder, or the hub is out of reach.
        FileFormatError: An autoencoder of a kind that is not read, or one of scaled activations whose scale SAELens
            does not know, so that it is not folded into the weights.

    Example:
        >>> import persona_lens as pl
        >>> release = "gemma-scope-2b-pt-res-canonical"
        >>> pl.vectors.load_autoencoder(release, "layer_12/width_16k/canonical")  # doctest: +SKIP
    """
    published = import_sae_lens().SAE
    try:
        loaded = published.from_pretrained(release, sae_id, device="cpu")
    except Exception as error:  # of whichever HTTP library and loader it uses
        rule = "name an autoencoder that SAELens finds"
        raise ApiError.of("release", rule, (release, sae_id), f"It says: {error}") from error
    weights = {name: values.detach() for name, values in loaded.state_dict().items()}
    return _build(loaded.cfg.to_dict(), weights, f"{release}, {sae_id}")


def import_sae_lens() -> Any:
    """Import SAELens, or say what to install.

    Raises:
        ImportError: It is not installed, or does not fit.
    """
    try:
        with warnings.catch_warnings():  # it takes names that TransformerLens 3 calls old
            warnings.simplefilter("ignore", DeprecationWarning)
            import sae_lens
    except ImportError as error:
        raise ImportError(
            "This needs SAELens, which needs TransformerLens 3: pip install 'persona-lens[sae]' 'transformer-lens<4'. "
            f"A folder is read without it, by read_autoencoder. ({error})"
        ) from error
    return sae_lens


def _build(config: Mapping[str, Any], weights: Mapping[str, Tensor], source: str) -> SparseAutoencoder:
    """Make an autoencoder of what SAELens keeps of one, or refuse a kind that would be read wrongly."""
    metadata = config.get("metadata") or {}
    activation, k = _read_activation(config)
    for name in ("normalize_activations", "reshape_activations"):
        if config.get(name) not in (None, "none"):
            # Folding writes "none": what still says this has biases and thresholds at the scale of the training.
            hint = _HOW_TO_FOLD if config[name] == "expected_average_only_in" else ""
            raise FileFormatError.of(name, "be 'none', an autoencoder of activations as they are", config[name], hint)
    missing = {"W_enc", "b_enc", "W_dec", "b_dec"} - weights.keys()
    if missing:
        raise FileFormatError.of("folder", "hold an encoder and a decoder with biases", f"none of {sorted(missing)}")
    encoder, bias, decoder = (weights[name].float() for name in ("W_enc", "b_enc", "W_dec"))
    if config.get("rescale_acts_by_decoder_norm") and activation == "topk":
        # Which features are highest is told with the decoder's lengths; with those in the encoder it is told without.
        lengths = decoder.norm(dim=-1)
        encoder, bias, decoder = encoder * lengths, bias * lengths, decoder / lengths[:, None]
    hook = config.get("hook_name") or metadata.get("hook_name") or ""
    try:
        return SparseAutoencoder(
            encoder=encoder,
            encoder_bias=bias,
            decoder=decoder,
            decoder_bias=weights["b_dec"].float(),
            activation=activation,
            k=k,
            threshold=weights["threshold"].float() if activation == "jumprelu" else None,
            subtracts_bias=bool(config.get("apply_b_dec_to_input", True)),
            layer=_read_layer(hook),
            source={"from": source, "hook": hook, "model": config.get("model_name") or metadata.get("model_name")},
        )
    except (InvalidArgumentError, KeyError, TypeError) as error:
        raise FileFormatError(f"`folder` must hold an autoencoder whose parts fit each other: {error}") from error


def _read_activation(config: Mapping[str, Any]) -> tuple[Activation, int | None]:
    architecture = config.get("architecture", "standard")
    written = config.get("activation_fn_str") or config.get("activation_fn") or "relu"
    arguments = config.get("activation_fn_kwargs") or {}
    if architecture == "standard" and written == "topk":  # as versions before 6 wrote it
        architecture, config = "topk", {**config, "k": arguments.get("k")}
    elif written != "relu":
        raise FileFormatError.of("activation_fn", "be 'relu' or 'topk'", written)
    if architecture not in ("standard", "topk", "jumprelu"):
        rule = "be 'standard', 'topk' or 'jumprelu'"
        raise FileFormatError.of("architecture", rule, architecture, "Other kinds' features are not found alike.")
    return cast(Activation, architecture), config.get("k") if architecture == "topk" else None


def _read_layer(hook: str) -> int | None:
    """Return the block after which a hook point lies, if it is at a residual stream; the paper's numbers are others."""
    parts = hook.split(".")
    if len(parts) != 3 or parts[0] != "blocks" or not parts[1].isdigit():
        return None
    return {"hook_resid_post": int(parts[1]), "hook_resid_pre": int(parts[1]) - 1}.get(parts[2])
