"""The page of a report: its words, pictures, tables, downloads and script, as one HTML file that fetches nothing.

May use `frame`, `published`, `tables` and `figures`.
Must not come in: which files a report has, command lines.
"""
