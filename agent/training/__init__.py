"""LoRA training on packed GGUF weights, in worker processes. Only here: torch."""
