"""Held-out text: log perplexity, and the divergence from the unquantized model, in one pass over its blocks.

Knows torch, and of lm-eval what `tasks.scoring` makes of it.  Which text is read is decided in `protocol`.
"""
