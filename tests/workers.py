"""How pytest-xdist splits a run: two processes for a whole tier, none where tests were named.

One process, in which a debugger and ``-s`` work, suits a few tests; ``-n 0`` forces it. A file stays in one process,
with the models that its fixtures make; so do all tests of DirectML, because the lab runs one program at a time.
"""

from __future__ import annotations

from typing import Any

import pytest

WORKERS = 2  # each takes up to 2 GB of memory
LAB = "tests/directml/"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    return WORKERS if config.args_source is pytest.Config.ArgsSource.TESTPATHS else 0


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return LAB if nodeid.startswith(LAB) else super()._split_scope(nodeid)

    return Scheduling(config, log) if config.option.dist == "loadfile" else None
