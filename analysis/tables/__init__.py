"""Tables: their rows and columns, and each one as markdown, LaTeX, HTML and text.

May use `frame` and `published`.
Must not come in: figures, files that are written, command lines.
"""
