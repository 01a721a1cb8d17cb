"""Stage one: a cell becomes a nested checkpoint, by the algorithm that it names.

May use everything below: `algorithms`, `runs`, `models`, `parallel`, `codes`, `config`.
No evaluation, no SLURM.
"""
