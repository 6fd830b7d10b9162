"""Everything that touches TransformerLens: loading, chat templates, hooks, sampling, activations."""
