"""Pairs of activations whose direction is known, for tests."""

import torch

from persona_lens.models.loading import ModelInfo
from persona_lens.vectors import ActivationPairs


def describe(n_layers=2, d_model=400):
    return ModelInfo(
        name="made up", n_layers=n_layers, d_model=d_model, n_ctx=8, dtype="float32", backend="hooked",
        fingerprint="0123456789abcdef", weight_processing="none",
    )  # fmt: skip


def make_pairs(signal, *, n=40, n_layers=2, d_model=400, noise=1.0, per_question=1, seed=0, trait="loud", direction=0):
    """Pairs whose differences are ``signal`` along one axis, with Gaussian noise of length about ``noise``."""
    generator = torch.Generator().manual_seed(seed)
    shape = (n, n_layers, d_model)
    positive, negative = (noise * (d_model * 2) ** -0.5 * torch.randn(shape, generator=generator) for _ in range(2))
    positive[:, :, direction] += signal
    questions = tuple(row // per_question for row in range(n))
    return ActivationPairs(trait, describe(n_layers, d_model), positive, negative, questions)
