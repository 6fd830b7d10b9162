"""The model classes that the installed TransformerLens has: both in 3.9, only the bridge in 4."""

import transformer_lens

BACKENDS = ["hooked", "bridge"] if hasattr(transformer_lens, "HookedTransformer") else ["bridge"]
ARCHITECTURES = ["llama", "qwen2", "qwen3", "mistral", "gemma", "gemma2"]
