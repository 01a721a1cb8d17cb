"""Claims of papers, for any study: a claim as data, the rules of verdicts, words with placeholders, the document.

May use `frame`, `published`, `tables`, `figures`, `page` and `report`.
Must not come in: anything that is true of one study only; that lies in studies/NAME.
"""
