"""Stage two and its stages' runner: every read-out of a cell on every task, by lm-eval, and what it will cost.

May use `matquant`; `lm_eval_patches`, `scoring`, `language_model` and `sources` alone know lm_eval.
No tables or figures, and no SLURM: others read the results.
"""
