"""Opens exported folders with HQQ's own library, inside its environment: a digest of every layer's weights, and logits.

The logits of some tokens are left beside each export, in logits.safetensors.  The library is installed nowhere else:
transformers imports it where it finds it, and that takes seconds.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
from hqq.core.quantize import HQQLinear  # pyright: ignore[reportMissingImports] -- in its environment alone
from hqq.models.hf.base import AutoHQQHFModel  # pyright: ignore[reportMissingImports]
from safetensors.torch import save_file


@torch.no_grad()
def answer(folders: list[str], tokens: list[int]) -> dict[str, Any]:
    torch.set_num_threads(1)
    digests = {}
    for folder in folders:
        model = AutoHQQHFModel.from_quantized(folder, compute_dtype=torch.float32, device="cpu")
        digests[folder] = {
            name: hashlib.sha256(layer.dequantize().contiguous().numpy().data).hexdigest()
            for name, layer in model.named_modules()
            if isinstance(layer, HQQLinear)
        }
        save_file({"logits": model(torch.tensor([tokens])).logits[0].contiguous()}, Path(folder) / "logits.safetensors")
    return {"digests": digests}


if __name__ == "__main__":
    print(json.dumps(answer(**json.load(sys.stdin))))
