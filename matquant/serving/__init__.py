"""The way out of the harness: a nested folder that holds every width, and what reads it.

Here live the folder itself (`nested`), its registrations with transformers and vLLM, and exports for engines
(`engines`, `gguf`).  The room may use all others but training and search; nothing here knows Hydra, results or
clusters, since the wheel serves without them.
"""
