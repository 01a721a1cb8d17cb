"""Overrides as a person types them: what each word means, the line that Hydra reads, or a sentence with a remedy.

`overrides` is the door; `files` knows the axes and their choices, `grammar` is Hydra's own of one value.
Kinds of keys are read off the typed configuration, in `cell` and `setup`; composing comes after, in `compose`.
"""
