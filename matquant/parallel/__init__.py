"""Several processes that train one model: how many there are, how they agree, and how the model is spread over them.

May use `config`; `ranks` needs no torch.
No algorithms: those ask the world they are handed.
"""
