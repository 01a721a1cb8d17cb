"""The nested folder, its readers, and exports for engines."""
