"""The study of grids: where a grid can lie, as an axis of its own, for slices and for baselines alike."""
