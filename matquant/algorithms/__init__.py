"""Base algorithms, one module each with a `fit`: MinMax, Search, OmniQuant, GPTQ, QAT; and what they share.

May use `models`, `parallel` and `codes`; MatQuant is none of them but the objective they are all given.
No paths, clusters or time limits: a fit reports through `progress.Progress`.
"""
