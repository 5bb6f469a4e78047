"""The engine's process: loads a model, and generates what its parent asks for until the pipe ends.

Started by ``child`` as ``python -m gptoss_runtime.engine_process.worker``. Requests come on standard input and events
go to standard output; whatever native code prints goes to standard error instead. Knows nothing of text and HTTP.
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
from gptoss_runtime.engine_process.messages import BUFFER, Event, Load, Loaded, Outbox, Raised, Request, receive
from gptoss_runtime.engine_process.scheduler import Scheduler, as_ours

_QUIET = 0.05  # seconds without a request: long enough that whoever loaded it has tried it


def main() -> None:
    """Serves one parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C is the parent's to understand
    reader, outbox = _pipes()
    try:
        load: Load = receive(reader)
    except EOFError:
        return
    inbox: SimpleQueue[Request] = SimpleQueue()
    threading.Thread(target=_listen, args=(reader, inbox), daemon=True).start()
    try:
        engine = load_engine(load.path, **load.options)
    except Exception as error:
        outbox.put([Raised(0, as_ours(error))])
        return
    assert isinstance(engine, LogitsEngine)
    outbox.put([Loaded(os.getpid(), engine.info, engine.slots)])
    _serve(engine, inbox, outbox)


def _serve(engine: LogitsEngine, inbox: SimpleQueue[Request], outbox: Outbox) -> None:
    def send(events: list[Event]) -> None:
        outbox.put(events)

    def read() -> None:
        while not inbox.empty():
            scheduler.handle(inbox.get())

    quiet = False

    def wait() -> Request:
        """The next request; in the first quiet moment reads the vocabulary, so that no grammar has to wait for it."""
        nonlocal quiet
        if not quiet:
            try:
                return inbox.get(timeout=_QUIET)
            except Empty:
                quiet = True
                engine.read_vocabulary()
        return inbox.get()

    scheduler = Scheduler(engine, send)
    while not outbox.broken and not scheduler.lost:
        if scheduler.idle:
            scheduler.handle(wait())
        scheduler.turns(between=read)


def _listen(reader: IO[bytes], inbox: SimpleQueue[Request]) -> None:
    """Waits for requests beside the work, and ends the process when its parent is gone."""
    try:
        while True:
            inbox.put(receive(reader))
    except EOFError:
        _leave()


def _leave() -> NoReturn:
    """Ends the process whatever its other threads are in, without Windows' farewells to DLLs that may wait for them."""
    if sys.platform == "win32":
        os.kill(os.getpid(), signal.SIGTERM)  # TerminateProcess there
    os._exit(0)


def _pipes() -> tuple[IO[bytes], Outbox]:
    """The pipes, moved away from where native code prints to and reads from."""
    sys.stdout.flush()
    reader, writer = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0, inheritable=False)
    os.dup2(2, 1, inheritable=False)
    os.close(nothing)
    return open(reader, "rb", buffering=BUFFER), Outbox(open(writer, "wb", buffering=0))  # noqa: PTH123


if __name__ == "__main__":
    main()
    sys.stderr.flush()
    _leave()
