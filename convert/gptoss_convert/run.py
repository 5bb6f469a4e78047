"""What a caller in this process shares with the passes, past Olive: it swallows exceptions and knows no progress."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass

from gptoss_convert.partial import PartialFolder
from gptoss_convert.provenance import SourceDigests
from gptoss_convert.writing import Progress, Settings
from gptoss_runtime.errors import GptOssError


@dataclass
class Run:
    """One conversion.

    Attributes:
        progress: called with (bytes written, bytes in all).
        check_progress: called in the first run with (parts done, parts in all).
        memory: bytes that weights in the making may take; ``None``: not said.
        partial: where the weights grow, to be resumed; ``None``: in the pass's own folder.
        request: what is asked for, as a digest.
        digests: checksums of the checkpoint that are being made already.
        error: what a pass raised.
    """

    progress: Progress | None = None
    check_progress: Progress | None = None
    memory: int | None = None
    partial: PartialFolder | None = None
    request: str = ""
    digests: SourceDigests | None = None
    error: GptOssError | None = None

    def settings(self, file_limit: int | None) -> Settings:
        """How this run writes weights."""
        journal = self.partial.journal if self.partial else None
        return Settings(self._report, self.memory, file_limit, journal, self.request)

    def _report(self, done: int, total: int) -> None:
        if self.digests:
            self.digests.raise_if_failed()  # no hour of work on a damaged file
        if self.progress:
            self.progress(done, total)


CURRENT: ContextVar[Run | None] = ContextVar("CURRENT", default=None)
