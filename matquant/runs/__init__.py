"""The run of a cell on disk: folder, files, checkpoint, status, provenance, tracking, and stopping at safe points.

May use `codes` and `config`; `wandb_run` alone knows Weights & Biases, and `trackio_run` trackio.
No algorithms: stages are handed in.
"""
