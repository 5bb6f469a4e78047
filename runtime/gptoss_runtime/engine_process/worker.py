"""The child process's program: loads a model and serves requests until the parent closes the pipe.

``child`` starts it as ``python -m gptoss_runtime.engine_process.worker``. Requests arrive on standard input and events
leave on standard output; what native code prints goes to standard error. Knows nothing of text and HTTP.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from queue import Empty, SimpleQueue
from typing import IO, NoReturn

from gptoss_runtime.engine.decoding import LogitsEngine
from gptoss_runtime.engine.loading import load_engine
from gptoss_runtime.engine_process.messages import (
    LOAD_ID,
    PIPE_BUFFER,
    ErrorEvent,
    LoadedEvent,
    LoadRequest,
    MessageWriter,
    WorkerEvent,
    WorkerRequest,
    read_message,
)
from gptoss_runtime.engine_process.scheduler import Scheduler, to_gptoss_error

_PRELOAD_DELAY = 0.05  # seconds without a request before idle time is used: a first test request comes earlier


def main() -> None:
    """Loads a model and serves requests."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl+C
    reader, writer = _open_pipes()
    try:
        load: LoadRequest = read_message(reader)
    except EOFError:
        return
    requests: SimpleQueue[WorkerRequest] = SimpleQueue()
    threading.Thread(target=_read_requests, args=(reader, requests), daemon=True).start()
    try:
        engine = load_engine(load.path, **load.options)
    except Exception as error:
        writer.send([ErrorEvent(LOAD_ID, to_gptoss_error(error))])
        return
    assert isinstance(engine, LogitsEngine)
    writer.send([LoadedEvent(os.getpid(), engine.info, engine.slots)])
    _serve(engine, requests, writer)


def _serve(engine: LogitsEngine, requests: SimpleQueue[WorkerRequest], writer: MessageWriter) -> None:
    def send(events: list[WorkerEvent]) -> None:
        writer.send(events)

    def handle_requests() -> None:
        while not requests.empty():
            scheduler.handle(requests.get())

    preloaded = False

    def wait_for_request() -> WorkerRequest:
        """Waits; the first idle time loads the grammar vocabulary, so that the first grammar starts sooner."""
        nonlocal preloaded
        if not preloaded:
            try:
                return requests.get(timeout=_PRELOAD_DELAY)
            except Empty:
                preloaded = True
                engine.preload_grammar_vocabulary()
        return requests.get()

    scheduler = Scheduler(engine, send)
    while not writer.broken and not scheduler.device_lost:
        if scheduler.idle:
            scheduler.handle(wait_for_request())
        scheduler.step(handle_requests)


def _read_requests(reader: IO[bytes], requests: SimpleQueue[WorkerRequest]) -> None:
    """Reads requests in a thread of its own; ends the process when the parent closes the pipe or dies."""
    try:
        while True:
            requests.put(read_message(reader))
    except EOFError:
        _exit()


def _exit() -> NoReturn:
    """Ends the process at once, whatever its other threads are doing.

    On Windows os._exit would detach every DLL, and one of them may wait for a thread that is gone.
    """
    if sys.platform == "win32":
        os.kill(os.getpid(), signal.SIGTERM)  # TerminateProcess
    os._exit(0)


def _open_pipes() -> tuple[IO[bytes], MessageWriter]:
    """Moves the pipes to other descriptors, so that native code cannot read from or print into them."""
    sys.stdout.flush()
    reader, writer = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0, inheritable=False)
    os.dup2(2, 1, inheritable=False)
    os.close(null)
    return open(reader, "rb", buffering=PIPE_BUFFER), MessageWriter(open(writer, "wb", buffering=0))  # noqa: PTH123


if __name__ == "__main__":
    main()
    sys.stderr.flush()
    _exit()
