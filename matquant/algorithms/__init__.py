"""Base algorithms: MinMax (no training), OmniQuant and GPTQ (block by block), QAT (end to end).

MatQuant is none of them: it is an objective.

An algorithm turns a model and calibration tokens into nested weights.  It reports through `Progress` and knows nothing
of paths, clusters or time limits.
"""
