"""Models and text: where they come from, and the device they run on.

`loading` is the door.  Rooms: `layers` takes a model apart, `text` makes tokens of documents, `foreign` reads what
others quantized.  May use `codes` and `config`.  No algorithms, and no files of a run.
"""
