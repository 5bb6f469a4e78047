"""The child process from its parent's side: starts it, reads its events, and detects its end.

Knows processes and pipes. Of requests it knows only their ids and where to put their replies.
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
    LOAD_ID,
    PIPE_BUFFER,
    CancelRequest,
    EndEvent,
    ErrorEvent,
    LoadedEvent,
    LoadRequest,
    LogitsEvent,
    MessageWriter,
    WorkerEvent,
    read_message,
)
from gptoss_runtime.errors import BackendError, BackendUnavailable, EngineDied, GptOssError

_EXIT_TIMEOUT = 2.0  # seconds before a child that should end is killed
_STDERR_LINES = 20  # kept for the error message if the child dies
_log = logging.getLogger(__name__)


class PendingRequest:
    """A request sent to the child, with the queue of its replies.

    A reply is an event or an error; None wakes a reader whose generation was cancelled. ``started`` is False if the
    child died while the request was still queued: another child may then serve it. ``submitted_at`` is a
    ``time.perf_counter`` value.
    """

    def __init__(self, request_id: int) -> None:
        self.id = request_id
        self.started = True
        self.submitted_at = time.perf_counter()
        self.replies: SimpleQueue[WorkerEvent | LoadedEvent | GptOssError | None] = SimpleQueue()


class ChildProcess:
    """A running worker process with a loaded model.

    Args:
        load: what to load.

    Raises:
        GptOssError: what loading raised in the child; ``EngineDied`` if the child ended instead.
    """

    def __init__(self, load: LoadRequest) -> None:
        self._pending: dict[int, PendingRequest] = {}
        self._lock = threading.Lock()  # guards _pending and _next_id
        self._next_id = LOAD_ID + 1
        self._closing = False
        self.died_at: float | None = None  # time.monotonic() when the process ended
        self.slots = 1  # until the model is loaded
        self.mean_duration = 0.0  # seconds per generation, a running mean
        self._stderr_tail: deque[str] = deque(maxlen=_STDERR_LINES)
        self._process = _start_process()
        process = self._process
        pipes = cast(tuple[io.FileIO, io.FileIO, io.FileIO], (process.stdin, process.stdout, process.stderr))
        self._stdin, stdout, stderr = pipes
        self._writer = MessageWriter(self._stdin)
        self._events_thread = threading.Thread(target=self._read_events, args=(stdout,), daemon=True)
        self._stderr_thread = threading.Thread(target=self._read_stderr, args=(stderr,), daemon=True)
        loading = self._pending[LOAD_ID] = PendingRequest(LOAD_ID)
        self._events_thread.start()
        self._stderr_thread.start()
        try:
            self._writer.send(load)
            loaded = loading.replies.get()
            if isinstance(loaded, Exception):
                raise loaded
        except BaseException:
            self.stop()
            raise
        assert isinstance(loaded, LoadedEvent)
        self.pid: int = loaded.pid
        self.info: ModelInfo = loaded.info
        self.slots = loaded.slots

    @property
    def alive(self) -> bool:
        """Whether the child accepts requests."""
        return self.died_at is None and not self._closing

    @property
    def requests(self) -> int:
        """Number of requests that are running or queued."""
        return len(self._pending)

    def open_request(self, limit: int) -> PendingRequest | None:
        """Registers a new request, or returns None if ``limit`` requests are pending."""
        with self._lock:
            if len(self._pending) >= limit:
                return None
            request = PendingRequest(self._next_id)
            self._next_id += 1
            if self.alive:
                self._pending[request.id] = request
            else:
                self._fail(request, started=False)
            return request

    def send(self, message: object) -> None:
        """Sends a message. If the pipe is broken, pending requests get an error from the reading thread."""
        self._writer.send(message)

    def cancel(self, request_id: int) -> None:
        """Cancels a request. Safe to call from any thread and from a finaliser."""
        if request_id in self._pending:
            self.send(CancelRequest(request_id))

    def memory(self) -> int:
        """Resident bytes; 0 once the process has ended."""
        try:
            return int(psutil.Process(self.pid).memory_info().rss) if self.alive else 0
        except psutil.Error:
            return 0

    def stop(self) -> None:
        """Ends the process and waits until it has ended."""
        self._closing = True
        with suppress(OSError):
            self._stdin.close()
        self._wait_or_kill()
        for thread in (self._events_thread, self._stderr_thread):
            if thread is not threading.current_thread():  # a finaliser may run in either of them
                thread.join()

    def _wait_or_kill(self) -> None:
        try:
            self._process.wait(_EXIT_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _read_events(self, stdout: io.FileIO) -> None:
        """Dispatches events until the pipe closes, then fails what is pending."""
        with io.BufferedReader(stdout, PIPE_BUFFER) as reader, suppress(EOFError):
            while True:
                for event in read_message(reader):
                    self._dispatch(event)
        self._wait_or_kill()  # a process may close its pipe and hang
        self._stderr_thread.join(_EXIT_TIMEOUT)  # the exit error quotes the last line of stderr
        with self._lock:
            self.died_at = time.monotonic()
            for index, request in enumerate(self._pending.values()):  # in order of arrival, so the first ones had slots
                self._fail(request, started=index < self.slots)
            self._pending.clear()

    def _dispatch(self, event: WorkerEvent | LoadedEvent) -> None:
        request_id = LOAD_ID if isinstance(event, LoadedEvent) else event.id
        request = self._pending.get(request_id)
        if request is None:
            return
        if isinstance(event, EndEvent | ErrorEvent | LogitsEvent | LoadedEvent):
            with self._lock:
                del self._pending[request_id]
        if isinstance(event, EndEvent) and event.result is not None:
            timings = event.result.timings
            duration = timings.prefill_seconds + timings.decode_seconds
            self.mean_duration = 0.8 * self.mean_duration + 0.2 * duration if self.mean_duration else duration
        request.replies.put(event.error if isinstance(event, ErrorEvent) else cast(Any, event))

    def _read_stderr(self, stderr: io.FileIO) -> None:
        """Drains stderr, so that native code that prints much cannot block on a full pipe."""
        with io.TextIOWrapper(io.BufferedReader(stderr), "utf-8", "replace") as lines:
            for line in lines:
                self._stderr_tail.append(line.rstrip())
                _log.debug("%s", line.rstrip())

    def _fail(self, request: PendingRequest, *, started: bool) -> None:
        request.started = started
        if self._closing:
            request.replies.put(BackendError("the engine is closed", remedy="Load it again."))
        else:
            request.replies.put(self._exit_error())

    def _exit_error(self) -> EngineDied:
        code = self._process.poll()
        last_line = next((line for line in reversed(self._stderr_tail) if line.strip()), "")
        return EngineDied(
            f"the engine's process ended with {_describe_exit(code)}"
            + (f"; its last output: {last_line[:300]}" if last_line else ""),
            remedy="Retry: the next request restarts it. If the system ran out of memory, load with a smaller "
            "context_length or fewer slots.",
        )


def _describe_exit(code: int | None) -> str:
    if code is not None and code < 0:
        with suppress(ValueError):
            return f"signal {signal.Signals(-code).name}"
    return f"exit code {code}" if code is None or code < 256 else f"exit code {code:#x}"  # Windows status codes


def _start_process() -> subprocess.Popen[bytes]:
    """Starts the worker: it inherits no sockets, opens no console window, and does not receive the parent's Ctrl+C."""
    if getattr(sys, "frozen", False):
        raise BackendUnavailable(
            "a frozen program cannot start the engine in a child process",
            remedy="Use load_engine, which runs the engine in this process.",
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
        with suppress(OSError):  # the system's limit may be lower
            fcntl.fcntl(process.stdin, fcntl.F_SETPIPE_SZ, PIPE_BUFFER)
    return process
