"""Plans for llama.cpp: tensor by tensor, every byte from the engine itself."""
