"""Results on disk: the loose files of a store, the two packed files of a study, and what a tracker is told of them.

May use `matquant.runs`, `matquant.config`, `matquant.notation`, and of `matquant.codes` what needs no torch; pyarrow is
imported where a table is opened.
No torch and no lm_eval: planning and analysis read results without them.
"""
