"""Models that somebody else quantized: their layouts as weights, one module for each kind of arithmetic.

May use `codes`, `stored` and the modules of `models` on files of weights; `matquant.models.loading` opens them.
"""
