"""What a study will read, write and cost, before anything is computed: checks, and estimates of work, time and disk.

No torch.  `preflight` is what callers want; it raises UserError with a remedy for everything that is sure to fail.
"""
