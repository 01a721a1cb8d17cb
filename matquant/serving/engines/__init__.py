"""One read-out in the layout of an engine, a module for each: `formats` says what each can hold, and how faithfully.

llama.cpp's has a room of its own, `serving.gguf`.  `serving.export` chooses one by its name.
"""
