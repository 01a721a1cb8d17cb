"""The figures of the papers and of a study, drawn in one style (`style`); `gallery` says which ones a study has.

May use `frame`, `published` and matplotlib.
Must not come in: tables, pages, files that are written.
"""
