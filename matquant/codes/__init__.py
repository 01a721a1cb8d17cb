"""Nested codes: how a parent code is made from a weight, sliced (Eq. 6), read back, and counted in bits.

May use `notation` and the specifications in `config`; tensors in, tensors out.
No models by name, no files, no training loops.
"""
