"""sbatch on clusters of any kind: its environment, its options, its limits, and its answers in plain words."""
