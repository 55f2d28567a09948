"""GGUF files, the llama.cpp runtime, adapters and their conversion. Only here: llama_cpp, gguf."""
