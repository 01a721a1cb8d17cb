"""Files of models as they lie on a disk: their content, and what a quantized one says of itself.

May use `errors`.  No torch and no transformers: configuration asks here what is in a file, and plans without them.
"""
