"""An ordered map over several threads. NumPy releases the GIL, so threads suffice.

Only a bounded number of results waits for the consumer, which bounds memory.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
WORKERS = min(8, os.cpu_count() or 1)


def map_ordered(
    make: Callable[[Item], Result], items: Iterable[Item], *, workers: int = WORKERS, ahead: int | None = None
) -> Iterator[Result]:
    """Yields ``make(item)`` for each item, in the items' order.

    Args:
        make: called in other threads; an exception is raised here, and no further item is started.
        items: consumed one by one.
        workers: number of threads.
        ahead: limit for results in progress or waiting; ``None``: the number of threads.
    """
    waiting: deque[Future[Result]] = deque()
    remaining = iter(items)
    with ThreadPoolExecutor(workers, thread_name_prefix="convert") as pool:
        try:
            for item in remaining:
                waiting.append(pool.submit(copy_context().run, make, item))  # keeps np.errstate
                if len(waiting) >= (ahead or workers):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
