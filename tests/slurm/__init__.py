"""Jobs, and when they are submitted, against stand-ins; `tests.slurm_cluster` has a real cluster."""
