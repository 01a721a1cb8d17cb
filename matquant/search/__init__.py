"""Searches for the width of every layer under a budget of bits: strategies, their loss, and the stage that runs them.

May use checkpoints, models, calibration text and run folders; `strategies` and `request` work without torch.
Must not come in: training, tasks and results.  A search writes a plan, and evaluation reads it.
"""
