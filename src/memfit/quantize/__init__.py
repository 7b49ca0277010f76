"""Makes smaller files of models: by one of llama.cpp's types, or for a size."""
