"""Files for readers: the report of a study, the thirty tables of the paper, a W&B Report; with their command lines.

May use `frame`, `published`, `tables`, `figures` and `page`.
Must not come in: the claims of papers and their verdicts (`claims`).
"""
