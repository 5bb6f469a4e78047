"""What a caller shares with our passes without Olive, which swallows exceptions and reports no progress."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass

from gptoss_convert.partial import PartialFolder
from gptoss_convert.provenance import SourceDigests
from gptoss_convert.writing import Progress, WriteOptions
from gptoss_runtime.errors import GptOssError


@dataclass
class Run:
    """One conversion.

    Attributes:
        progress: called with (bytes written, bytes in all).
        check_progress: called in the first run with (parts done, parts in all).
        memory: most bytes that weights may take while they are made; ``None``: no limit was given.
        partial: folder in which the weights grow, so that they can be resumed; ``None``: the pass's own folder.
        request: digest of the requested conversion.
        digests: checksums of the checkpoint, computed in the background.
        error: the error that a pass raised.
    """

    progress: Progress | None = None
    check_progress: Progress | None = None
    memory: int | None = None
    partial: PartialFolder | None = None
    request: str = ""
    digests: SourceDigests | None = None
    error: GptOssError | None = None

    def write_options(self, file_limit: int | None) -> WriteOptions:
        """Options with which this run writes weights."""
        journal = self.partial.journal if self.partial else None
        return WriteOptions(self._report, self.memory, file_limit, journal, self.request)

    def _report(self, done: int, total: int) -> None:
        if self.digests:
            self.digests.raise_if_failed()  # stops early if the checkpoint is damaged
        if self.progress:
            self.progress(done, total)


CURRENT: ContextVar[Run | None] = ContextVar("CURRENT", default=None)
