import pytest
import torch

import persona_lens as pl


@pytest.fixture(scope="module")
def vectors(tiny_model):
    info = pl.describe_model(tiny_model)
    directions = torch.randn(2, 3, 48, generator=torch.Generator().manual_seed(0))
    return {
        name: pl.PersonaVector(name, info, {"response_mean": one})
        for name, one in zip(("loud", "kind"), directions, strict=True)
    }
