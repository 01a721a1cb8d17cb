"""From what a person types to cells, setups and sweeps."""
