"""The model classes that the installed TransformerLens has: both in 3.9, only the bridge in 4."""

import importlib.util

BACKENDS = ["bridge"]
if importlib.util.find_spec("transformer_lens.HookedTransformer"):
    BACKENDS.insert(0, "hooked")
ARCHITECTURES = ["llama", "qwen2", "qwen3", "mistral", "gemma", "gemma2"]
