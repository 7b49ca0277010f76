"""The transformers engine: Hugging Face checkpoints at bf16, INT8 or NF4, in a worker process of its own."""
