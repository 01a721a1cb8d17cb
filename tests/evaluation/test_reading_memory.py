"""The memory of reading held-out text: one batch of logits, however many batches there are."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, LlamaConfig

from evaluation.text.scores import score_text
from evaluation.text.teacher import teacher_of

VOCABULARY, TOKENS, BATCH = 5000, 8, 4
LOGITS = BATCH * TOKENS * VOCABULARY


class Live(TorchDispatchMode):
    """The bytes of the tensors that were made in its context and are still there, and the most there were."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.most = 0
        self._kept: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        value = func(*args, **(kwargs or {}))
        given = {one.untyped_storage()._cdata for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)}
        for one in tree_leaves(value):
            if isinstance(one, Tensor) and (key := one.untyped_storage()._cdata) not in given | self.sizes.keys():
                self._hold(key, one.untyped_storage())
        return value

    def _hold(self, key: int, storage: Any) -> None:
        def gone(_: object) -> None:
            del self.sizes[key], self._kept[key]

        self.sizes[key], self._kept[key] = storage.nbytes(), weakref.ref(storage, gone)
        self.most = max(self.most, sum(self.sizes.values()))


class Bar:
    """Looks at what is there after every batch."""

    def __init__(self, live: Live) -> None:
        self.live, self.numbers = live, list[int]()

    def update(self, n: int = 1, /) -> None:
        self.numbers.append(len(self.live.sizes))


def model() -> Any:
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
    }
    return AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=VOCABULARY, **shape)).eval()


def text(blocks: int) -> Tensor:
    return torch.randint(0, VOCABULARY, (blocks, TOKENS), generator=torch.Generator().manual_seed(1))


def read(blocks: int, folder: Path, *, compared: bool) -> tuple[Live, list[int]]:
    """One read-out, after another that has made what models make once."""
    read_out, held_out = model(), text(blocks)
    teacher = teacher_of(model(), held_out, content="one", batch_size=BATCH, cache=folder) if compared else None
    score_text(read_out, held_out, teacher, batch_size=BATCH, description="it", bar=Bar(Live()))
    with Live() as live:
        bar = Bar(live)
        score_text(read_out, held_out, teacher, batch_size=BATCH, description="it", bar=bar)
    return live, bar.numbers


@pytest.mark.parametrize("compared", [False, True])
def test_a_read_out_of_many_batches_takes_the_memory_of_one(compared, tmp_path):
    few, many = (read(blocks, tmp_path, compared=compared)[0].most for blocks in (2 * BATCH, 10 * BATCH))
    kept = 8 * BATCH * (8 + (TOKENS - 1) * 13)  # a loss, and three numbers and a truth of each token
    assert many - few <= 2 * kept + 4096, (few, many)  # the summary looks at all of them at once
    assert many < 4 * (2.5 * LOGITS)


@pytest.mark.parametrize("compared", [False, True])
def test_no_batch_leaves_a_tensor_behind(compared, tmp_path):
    numbers = read(6 * BATCH, tmp_path, compared=compared)[1]
    assert len(numbers) == 6
    assert len(set(numbers)) == 1, numbers


def test_a_teacher_reads_with_the_memory_of_one_batch(tmp_path):
    most = []
    for blocks, content in ((2 * BATCH, "few"), (10 * BATCH, "many")):
        with Live() as live:
            teacher_of(model(), text(blocks), content=content, batch_size=BATCH, cache=tmp_path)
        most.append(live.most)
    assert most[1] - most[0] < LOGITS, most
