"""Trackers have in common: the words for a cell, the files that they keep, and the time that they may take."""
