"""Plans for transformers: whole layers, bytes by the table of precisions."""
