"""lm-eval's tasks on a model that is in memory: the same scores as its command line, from a fraction of the tokens.

Knows lm_eval; every line that rests on its inside is in `evaluation.lm_eval_patches`.
"""
