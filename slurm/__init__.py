"""Whole studies as jobs: what is missing on disk is submitted, survives preemption, and is never computed twice."""
