"""A model as its blocks and linear layers: families of architectures, experts, the head, and what a scope covers.

`families` alone knows architectures; `experts` and `linear_layers` make linear layers of what is none.
"""
