"""A read-out as a GGUF file, which llama.cpp opens: its names, blocks of codes and tokenizers."""
