"""What is submitted and when, against stand-ins; `tests.slurm_cluster` has a real cluster."""
