"""The state of one stage of one cell, from what is on disk and what SLURM says, and what a user can do about it."""
