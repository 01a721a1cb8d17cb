"""Tables: which rows and columns there are, and the same table as markdown, LaTeX, HTML and text.

May use `frame` and `published`.
Must not come in: figures, files that are written, command lines.
"""
