"""Slow, obvious twins of fast functions, each after its paper.

Tests compare with them and benchmarks race against them.  They use `matquant`'s types and nothing that they check;
no test and no benchmark comes in.
"""
