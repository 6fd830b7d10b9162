"""Fine-tuning: training sets, and what training on them does to a model's traits."""
