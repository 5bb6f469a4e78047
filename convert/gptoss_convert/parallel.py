"""Results in order, made by several threads: NumPy lets go of the interpreter's lock while it works.

Knows nothing of what is made. What is ahead of its consumer is bounded, so memory is.
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
    """Yields ``make(item)`` of each item, in the items' order.

    Args:
        make: called in other threads; what it raises is raised here, and nothing more is begun.
        items: taken one by one.
        workers: threads.
        ahead: results that are being made or wait to be taken; ``None``: as many as threads.
    """
    waiting: deque[Future[Result]] = deque()
    remaining = iter(items)
    with ThreadPoolExecutor(workers, thread_name_prefix="convert") as pool:
        try:
            for item in remaining:
                waiting.append(pool.submit(copy_context().run, make, item))  # np.errstate goes along
                if len(waiting) >= (ahead or workers):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
