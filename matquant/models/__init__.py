"""Models and text: where they come from, their blocks and linear layers, their tokens, and the device they run on.

May use `codes` and `config`; `families` alone knows architectures.
No algorithms, and no files of a run.
"""
