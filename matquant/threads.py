"""Several threads of one process, each at work of its own.

Where a piece of work is small, threads that share it wait for each other longer than they work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def side_by_side(number: int) -> Iterator[Callable[..., Iterator[Any]]]:
    """A `map` by a number of threads, which divide torch's threads among themselves; results keep their order.

    What has not begun when the context is left, as by Ctrl-C, is not begun any more.
    """
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(number, initializer=torch.set_num_threads, initargs=(max(1, threads // number),))
    try:
        yield pool.map
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)
