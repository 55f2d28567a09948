"""Makes the seedling, the small language model that ships inside the package.

One command after the other, each resuming where an earlier run stopped:

    python -m tools.seedling corpus      Debian documentation -> cleaned text
    python -m tools.seedling tokenizer   text -> byte-level BPE, packed tokens
    python -m tools.seedling train       tokens -> weights, loss.csv
    python -m tools.seedling export      weights -> seedling-q8_0.gguf
    python -m tools.seedling verify      llama.cpp, transformers and PyTorch agree
"""
