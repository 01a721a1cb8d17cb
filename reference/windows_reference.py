"""Perplexity as GPTQ's scripts print it, by transformers alone: a script of its own, which shares no code with ours.

    python -m reference.windows_reference MODEL rows.txt

`rows.txt` holds rows of JSON strings, one a line.  Sources: llama_eval of llama.py and get_wikitext2 of datautils.py,
github.com/IST-DASLab/gptq; without the token that a tokenizer may set before the text.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence


@torch.no_grad()
def perplexity(
    model: str, rows: Sequence[str], *, separator: str = "\n\n", length: int = 2048, bos: bool = False
) -> float:
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokens = tokenizer(separator.join(rows), return_tensors="pt", add_special_tokens=bos).input_ids
    number, total = tokens.numel() // length, 0.0
    for i in range(number):
        window = tokens[:, i * length : (i + 1) * length]
        logits = network(window).logits
        loss = torch.nn.CrossEntropyLoss()(logits[0, :-1], window[0, 1:])
        total += loss.item() * length
    return torch.tensor(total / (number * length)).exp().item()


if __name__ == "__main__":
    print(perplexity(sys.argv[1], [json.loads(line) for line in Path(sys.argv[2]).read_text().splitlines()]))
