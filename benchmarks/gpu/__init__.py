"""The first ten minutes on a GPU: `make gpu-check` runs every part and writes one JSON file and one page."""
