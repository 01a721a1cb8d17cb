"""The way out of the harness: a nested folder that holds every width, and what reads it.

Here live the folder's layout, its writer and reader, layers that stay packed in memory, the registration with
transformers, and exports for engines.  The room may use all others but training and search; nothing here knows Hydra,
results or clusters, since the wheel serves without them.
"""
