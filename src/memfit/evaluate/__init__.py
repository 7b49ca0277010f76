"""How good a model's answers are: perplexity, and its distance from another model's predictions."""
