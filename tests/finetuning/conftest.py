"""Two models trained from one tiny base, on other texts and with other seeds."""

import pytest

import persona_lens as pl


@pytest.fixture(scope="session")
def adapters(tiny_folder, tmp_path_factory):
    """Folders of two LoRA adapters of the tiny Llama."""
    folders = []
    for seed, text in enumerate(("ababab", "xyz!")):
        row = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": text}]}
        settings = pl.FinetuneSettings(
            rank=3 + seed, learning_rate=1e-2, batch_size=4, accumulation=1, warmup_steps=0, dtype="float32", seed=seed
        )
        folder = tmp_path_factory.mktemp(f"adapter-{seed}")
        folders.append(pl.finetune(tiny_folder("llama"), [row] * 8, folder, settings=settings).folder)
    return folders


@pytest.fixture(scope="session")
def tuned(tiny_folder, adapters):
    """The two models, in float32."""
    options = {"dtype": "float32", "device": "cpu"}
    return [pl.load_model(tiny_folder("llama"), adapter=one, **options) for one in adapters]
