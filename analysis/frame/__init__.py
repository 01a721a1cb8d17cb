"""Results as numbers: files on disk become rows with names, averages, errors and paired differences.

May use pandas, and evaluation's results.
Must not come in: how anything looks, in a table, a figure or a sentence.
"""
