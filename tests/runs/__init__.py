"""A run on disk: checkpoint, status, stopping, tracking."""
