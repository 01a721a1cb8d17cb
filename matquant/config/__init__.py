"""Configuration: Hydra's values become typed, frozen objects (cells, setups, studies) here and nowhere else.

`syntax` reads what is typed, `compose` asks Hydra, `study` makes the cells and setups of `cell` and `setup` of it.
May use `notation`; Hydra is known where the contracts in pyproject.toml name a module, and nowhere else.
No torch: a study of thousands of cells is planned without it.
"""
