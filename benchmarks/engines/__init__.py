"""Exports opened by the engines they are for, each in an environment of its own; `make serve-check` runs them all.

A module here has a `main` that prints one table, and a program (`in_NAME.py`) that runs inside the engine's environment
and imports nothing of this clone.
"""
