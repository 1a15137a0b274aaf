"""How good a model's predictions are: perplexity, and divergence from another model."""
