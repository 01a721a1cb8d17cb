"""Reads results and draws what they say: numbers, tables, figures, reports, verdicts on claims.

May use evaluation's results and matquant's cells and notation.
Must not come in: torch, models.  Rooms: published, frame <- tables, figures <- page <- report <- claims <- notebooks.
"""
