"""Eq. 6 and what it acts on: slicing, grids, nested weights, planes, the column solve."""
