"""The base algorithms, their objective, training, and the search for widths."""
