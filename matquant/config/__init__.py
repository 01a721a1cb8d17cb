"""Configuration: Hydra's values become typed, frozen objects (cells, setups, studies) here and nowhere else.

May use `notation`; `compose` alone knows Hydra.
No torch: a study of thousands of cells is planned without it.
"""
