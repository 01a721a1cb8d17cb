"""Speed and memory, as ratios against a named rival in the same run; `make bench` runs them all.

May use everything but the tests; rivals that tests hold against as well lie in `reference`.
No timing in here is a test.
"""
