"""Threads with work of their own: in order, and none is begun once the context is left."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Event

import torch

from matquant.threads import side_by_side


def test_results_have_the_order_of_what_was_given_and_the_threads_are_divided():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        with side_by_side(2) as each:
            found = list(each(lambda number: (number, torch.get_num_threads()), range(9)))
        assert found == [(number, 2) for number in range(9)]
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)


def test_what_has_not_begun_is_not_begun_after_an_interrupt(monkeypatch):
    begun, over, shutdown = [], Event(), ThreadPoolExecutor.shutdown

    def shut(pool, wait=True, *, cancel_futures=False):
        shutdown(pool, wait=False, cancel_futures=cancel_futures)
        over.set()
        shutdown(pool, wait=wait)

    def work(number):
        begun.append(number)
        return number == 0 or over.wait()

    monkeypatch.setattr(ThreadPoolExecutor, "shutdown", shut)
    with suppress(KeyboardInterrupt), side_by_side(2) as each:
        next(each(work, range(100)))
        raise KeyboardInterrupt
    assert set(begun) <= {0, 1, 2}
