"""Opens exported folders with HQQ's own library, inside its environment: the logits of each for the same tokens.

DISABLE_CUDA=1 keeps its installation from compiling kernels.  It is installed nowhere else: transformers imports it
where it finds it, and that takes seconds.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from hqq.models.hf.base import AutoHQQHFModel  # pyright: ignore[reportMissingImports] -- in its environment alone


@torch.no_grad()
def answer(folders: list[str], tokens: list[int]) -> dict[str, Any]:
    torch.set_num_threads(1)
    logits = {}
    for folder in folders:
        model = AutoHQQHFModel.from_quantized(folder, compute_dtype=torch.float32, device="cpu")
        logits[folder] = model(torch.tensor([tokens])).logits[0].tolist()
    return {"logits": logits}


if __name__ == "__main__":
    print(json.dumps(answer(**json.load(sys.stdin))))
