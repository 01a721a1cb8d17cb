"""Whole studies as jobs: what is missing on disk is submitted, survives preemption, and is never computed twice.

May use `matquant` and `evaluation`; it alone knows submitit.  `plan` says the state of a stage, `here` and `submit` run
jobs on this machine and on a cluster, `wording` puts a sweep into words.
No measuring and no drawing: a job calls a stage, and nothing calls slurm.
"""
