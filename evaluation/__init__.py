"""Stage two and its stages' runner: every read-out of a cell on every task, by lm-eval, and what it will cost.

`stages` runs a cell, `evaluate` one of its read-outs; `asked` and `protocol` say what is asked for, and of what text.
Rooms: `tasks` and `text` measure, `sources` loads documents, `results` keeps what was found, `planning` looks ahead.
May use `matquant`.  No tables or figures, and no SLURM: others read the results.
"""
