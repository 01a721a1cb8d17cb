"""Matryoshka quantization (arXiv:2502.06786): one nested checkpoint, read at every precision.

Rooms, each above those it may use: training and search; algorithms and runs; models and parallel; codes; config.
"""
