"""Tasks and their documents: where they come from, and the facts about the paper's six in one table.

May use lm_eval and datasets, imported inside functions only, because a sweep is planned without them.
Must not come in: models, scores, results, and anything that imports torch.
"""
