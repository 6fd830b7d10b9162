"""A small top-k autoencoder, trained with SAELens on activations that are there."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from persona_lens.checking import checked
from persona_lens.errors import InvalidArgumentError
from persona_lens.models.hooks.sites import hook_name
from persona_lens.records import Record
from persona_lens.streams import Stream, check_seed
from persona_lens.vectors.contents.autoencoders import SparseAutoencoder, import_sae_lens, read_autoencoder


@checked
@dataclass(frozen=True)
class AutoencoderSettings(Record):
    """How an autoencoder is trained.

    Args:
        n_features: Features.
        k: Features that stand for one token.
        n_steps: Adam's steps.
        batch_size: Tokens of a step, drawn from all that there are, each once before any comes again.
        learning_rate: Highest; it falls to 0 over the last fifth.
        n_steps_dead: A feature that fired in none of so many steps is drawn to what the others leave over.
        seed: Of the first weights and the order of the tokens.
    """

    n_features: int = 1024
    k: int = 16
    n_steps: int = 1500
    batch_size: int = 512
    learning_rate: float = 5e-4
    n_steps_dead: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the fields."""
        for name in ("n_features", "k", "n_steps", "batch_size", "n_steps_dead"):
            if getattr(self, name) < 1:
                raise InvalidArgumentError.of(name, "be at least 1", getattr(self, name))
        if self.k > self.n_features:
            raise InvalidArgumentError.of("k", f"be at most `n_features`, {self.n_features}", self.k)
        if not 0 < self.learning_rate < 1:
            raise InvalidArgumentError.of("learning_rate", "be in (0, 1)", self.learning_rate)
        check_seed(self.seed)


@checked
def train_autoencoder(
    activations: Float[Tensor, "token d_model"],
    layer: int,
    settings: AutoencoderSettings = AutoencoderSettings(),
    *,
    folder: str | Path | None = None,
) -> SparseAutoencoder:
    """Train a top-k autoencoder with SAELens: the extra ``sae``.

    Activations are brought to a mean length of ``sqrt(d_model)`` while it trains; that factor is in its weights at the
    end, so that it takes activations as they are. Five minutes of one core for the defaults at ``d_model`` 576.

    Args:
        activations: Of tokens of texts that it will not be judged by, more than a batch; any floating dtype.
        layer: Zero-based block index at whose output they were read.
        settings: How it is trained.
        folder: Where it is written in SAELens' format, with the settings beside it; None keeps it in memory alone.

    Raises:
        ImportError: SAELens is not installed, or does not fit TransformerLens.
        InvalidArgumentError: Too few activations, or some that are not finite.

    Reference:
        Gao et al., Scaling and evaluating sparse autoencoders (arXiv 2406.04093), for the top-k activation and the
        loss that keeps features alive. Persona Vectors (arXiv 2507.21509), appendix M, uses published ones.

    Example:
        >>> import persona_lens as pl
        >>> pl.vectors.train_autoencoder(activations, layer=15, folder="my-sae")  # doctest: +SKIP
    """
    if layer < 0:
        raise InvalidArgumentError.of("layer", "be at least 0", layer)
    if len(activations) <= settings.batch_size:
        rule = f"hold more tokens than a batch, {settings.batch_size}"
        raise InvalidArgumentError.of("activations", rule, len(activations))
    if not bool(activations.isfinite().all()):
        raise InvalidArgumentError.of("activations", "be finite", "NaN or infinity")
    import_sae_lens()
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.config import SAETrainerConfig
    from sae_lens.saes.sae import SAEMetadata
    from sae_lens.training.sae_trainer import SAETrainer

    seed = settings.seed * 1000 + Stream.AUTOENCODER
    n_samples = settings.n_steps * settings.batch_size
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        untrained = TopKTrainingSAE(
            TopKTrainingSAEConfig(
                d_in=activations.shape[1], d_sae=settings.n_features, k=settings.k, dtype="float32", device="cpu",
                normalize_activations="expected_average_only_in",
                metadata=SAEMetadata(hook_name=hook_name(layer)),
            )
        )  # fmt: skip
        trainer = SAETrainer(
            SAETrainerConfig(
                total_training_samples=n_samples, train_batch_size_samples=settings.batch_size,
                lr=settings.learning_rate, lr_end=0.0, lr_decay_steps=settings.n_steps // 5,
                dead_feature_window=settings.n_steps_dead, n_batches_for_norm_estimate=20,
            ),
            untrained,
            _draw_batches(activations, settings.batch_size, seed),
        )  # fmt: skip
        trained = trainer.fit()
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary if folder is None else folder)
        trained.save_inference_model(place)
        if folder is not None:
            settings.save(place / "settings.json")
        found = read_autoencoder(place)
    found.source.update({"settings": asdict(settings), "n_tokens": len(activations)})
    return found


def _draw_batches(
    activations: Float[Tensor, "token d_model"], batch_size: int, seed: int
) -> Iterator[Float[Tensor, "batch d_model"]]:
    """Yield batches without end, in another order each time round."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(activations), generator=generator)
        for at in range(0, len(order) - batch_size + 1, batch_size):
            yield activations[order[at : at + batch_size]].float()
