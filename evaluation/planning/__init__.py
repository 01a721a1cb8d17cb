"""Checks of all that a study will read and write, and estimates of its work, time and disk, before anything starts.

`preflight` raises UserError with a remedy for everything that is sure to fail; `forecast` alone asks for the device.
"""
