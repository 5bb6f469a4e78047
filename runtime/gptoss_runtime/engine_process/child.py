"""Starts the engine's process, hears what it says and notices when it dies.

Knows processes and pipes; knows nothing of generations but that each has a number and is told its events.
"""

from __future__ import annotations

import io
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, cast

import psutil  # type: ignore[import-untyped]

from gptoss_runtime.engine.results import ModelInfo
from gptoss_runtime.engine_process.messages import (
    BUFFER,
    Cancel,
    Ended,
    Event,
    Load,
    Loaded,
    Outbox,
    Raised,
    Rows,
    receive,
)
from gptoss_runtime.errors import BackendError, BackendUnavailable, EngineDied, GptOssError

_GRACE = 2.0  # seconds to end by itself
_LAST_WORDS = 20  # lines of stderr kept for the message when it dies
_log = logging.getLogger(__name__)


class Stream:
    """What one request hears: events, an error, or None when its own ``cancel`` woke it.

    ``begun`` is False where the process died before it came to this request, which another may then serve.
    """

    def __init__(self, identity: int) -> None:
        self.id = identity
        self.begun = True
        self.opened = time.perf_counter()
        self.heard: SimpleQueue[Event | Loaded | GptOssError | None] = SimpleQueue()


class Child:
    """An engine's process, loaded.

    Args:
        load: what it loads.

    Raises:
        GptOssError: what loading raised there; ``EngineDied`` where it ended instead.
    """

    def __init__(self, load: Load) -> None:
        self._streams: dict[int, Stream] = {}
        self._lock = threading.Lock()  # of the streams and of what follows
        self._next = 1
        self._closing = False
        self.died: float | None = None  # time.monotonic() of its end
        self.slots = 1  # until it says so
        self.pace = 0.0  # seconds that a generation takes, a running mean
        self._words: deque[str] = deque(maxlen=_LAST_WORDS)
        self._process = _started()
        process = self._process
        pipes = cast(tuple[io.FileIO, io.FileIO, io.FileIO], (process.stdin, process.stdout, process.stderr))
        self._stdin, stdout, stderr = pipes
        self._outbox = Outbox(self._stdin)
        loading = Stream(0)
        self._streams[0] = loading
        self._threads = [
            threading.Thread(target=self._hear, args=(stdout,), daemon=True),
            threading.Thread(target=self._overhear, args=(stderr,), daemon=True),
        ]
        for thread in self._threads:
            thread.start()
        try:
            self._outbox.put(load)
            loaded = loading.heard.get()
            if isinstance(loaded, Exception):
                raise loaded
        except BaseException:
            self.stop()
            raise
        assert isinstance(loaded, Loaded)
        self.pid: int = loaded.pid
        self.info: ModelInfo = loaded.info
        self.slots = loaded.slots

    @property
    def alive(self) -> bool:
        """Whether requests reach it."""
        return self.died is None and not self._closing

    @property
    def requests(self) -> int:
        """How many are running or waiting."""
        return len(self._streams)

    def open(self, limit: int) -> Stream | None:
        """A stream for a new request, or None if there are ``limit`` already."""
        with self._lock:
            if len(self._streams) >= limit:
                return None
            stream = Stream(self._next)
            self._next += 1
            if self.alive:
                self._streams[stream.id] = stream
            else:
                self._fail(stream, begun=False)
            return stream

    def send(self, message: object) -> None:
        """Sends a request; if it cannot be sent, its stream hears of that."""
        self._outbox.put(message)

    def cancel(self, identity: int) -> None:
        """Gives a request up; from any thread, and in a finaliser."""
        if identity in self._streams:
            self.send(Cancel(identity))

    def memory(self) -> int:
        """Resident bytes; 0 once it has ended."""
        try:
            return int(psutil.Process(self.pid).memory_info().rss) if self.alive else 0
        except psutil.Error:
            return 0

    def stop(self) -> None:
        """Ends it and waits until it has ended."""
        self._closing = True
        with suppress(OSError):
            self._stdin.close()
        try:
            self._process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for thread in self._threads:
            if thread is not threading.current_thread():  # a finaliser runs anywhere
                thread.join()

    def _hear(self, stdout: io.FileIO) -> None:
        """Hands out events until the pipe ends."""
        with io.BufferedReader(stdout, BUFFER) as reader:
            try:
                while True:
                    for event in receive(reader):
                        self._hand_out(event)
            except EOFError:
                pass
        try:
            self._process.wait(_GRACE)
        except subprocess.TimeoutExpired:  # it has closed its pipe and hangs
            self._process.kill()
            self._process.wait()
        self._threads[1].join(_GRACE)  # its last words
        with self._lock:
            self.died = time.monotonic()
            for place, stream in enumerate(self._streams.values()):  # first come, first served
                self._fail(stream, begun=place < self.slots)
            self._streams.clear()

    def _hand_out(self, event: Event | Loaded) -> None:
        identity = 0 if isinstance(event, Loaded) else event.id
        stream = self._streams.get(identity)
        if stream is None:
            return
        if isinstance(event, Ended | Raised | Rows | Loaded):
            with self._lock:
                del self._streams[identity]
        if isinstance(event, Ended) and event.result is not None:
            timings = event.result.timings
            took = timings.prefill_seconds + timings.decode_seconds
            self.pace = 0.8 * self.pace + 0.2 * took if self.pace else took
        stream.heard.put(event.error if isinstance(event, Raised) else cast(Any, event))

    def _overhear(self, stderr: io.FileIO) -> None:
        """Keeps what native code prints from filling its pipe."""
        with io.TextIOWrapper(io.BufferedReader(stderr), "utf-8", "replace") as lines:
            for line in lines:
                self._words.append(line.rstrip())
                _log.debug("%s", line.rstrip())

    def _fail(self, stream: Stream, *, begun: bool) -> None:
        stream.begun = begun
        if self._closing:
            stream.heard.put(BackendError("the engine is closed", remedy="Load it again."))
        else:
            stream.heard.put(self._obituary())

    def _obituary(self) -> EngineDied:
        code = self._process.poll()
        words = next((word for word in reversed(self._words) if word.strip()), "")
        return EngineDied(
            f"the engine's process ended with {_named(code)}"
            + (f"; the last it printed: {words[:300]}" if words else ""),
            remedy="Ask again: it is started anew. If the system ran out of memory, load with a smaller context_length "
            "or fewer slots.",
        )


def _named(code: int | None) -> str:
    if code is not None and code < 0:
        with suppress(ValueError):
            return f"signal {signal.Signals(-code).name}"
    return f"exit code {code}" if code is None or code < 256 else f"exit code {code:#x}"  # Windows' are status codes


def _started() -> subprocess.Popen[bytes]:
    """The process: no inherited sockets, no console window, no part in the parent's Ctrl+C."""
    if getattr(sys, "frozen", False):
        raise BackendUnavailable(
            "a frozen program cannot start the engine in a process of its own",
            remedy="Use load_engine, which runs it in this process.",
        )
    paths = [entry or str(os.getcwd()) for entry in sys.path]  # noqa: PTH109
    options: dict[str, Any] = {"start_new_session": True}
    if sys.platform == "win32":
        options = {"creationflags": subprocess.CREATE_NO_WINDOW}
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "gptoss_runtime.engine_process.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        **options,
    )
    if sys.platform == "linux":
        import fcntl

        assert process.stdin is not None
        with suppress(OSError):  # a system may allow less
            fcntl.fcntl(process.stdin, fcntl.F_SETPIPE_SZ, BUFFER)
    return process
