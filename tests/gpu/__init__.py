"""The check of a GPU, and the paths that only a GPU takes, on stand-ins of one."""
