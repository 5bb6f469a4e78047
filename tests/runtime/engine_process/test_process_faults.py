"""Failures of the child process: it is killed, cannot load, loses its device or its parent, or prints too much."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from gptoss_runtime import (
    ArtifactError,
    BackendError,
    BackendUnavailable,
    DeviceLost,
    Engine,
    EngineDied,
    FinishReason,
    GenerationOptions,
    GptOssError,
    InvalidRequest,
    ResourceError,
    load_engine,
)
from gptoss_runtime.engine_process.engine import ProcessEngine

GREEDY = GenerationOptions(temperature=0, max_new_tokens=8, stop_token_ids=())
ENDLESS = GenerationOptions(temperature=0, stop_token_ids=())
PROMPT = list(range(1000, 1020))

SHIM = """
import os, sys
sys.path.remove(os.path.dirname(__file__))
del sys.modules[__name__]
import onnxruntime_genai as real
sys.modules[__name__] = real
"""


def has_ended(pid: int) -> bool:
    """Whether a process ends within 15 seconds; in a container without an init it stays as a zombie."""
    try:
        child = psutil.Process(pid)
        _, alive = psutil.wait_procs([child], timeout=15)
        return not alive or child.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def run_before_genai(folder: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Makes the child run ``code`` when it imports onnxruntime-genai, before it imports the real one."""
    (folder / "onnxruntime_genai.py").write_text(f"{code}\n{SHIM}", encoding="utf-8")
    monkeypatch.syspath_prepend(str(folder))


@pytest.mark.integration
def test_killed_while_generating(nano_artifact: Path, engine: Engine) -> None:
    with ProcessEngine.load(nano_artifact, threads=1, slots=2) as process:
        streams = [process.generate(PROMPT[at:], ENDLESS) for at in range(2)]
        for stream in streams:
            next(stream)
        first = process.pid
        psutil.Process(first).kill()
        for stream in streams:
            with pytest.raises(EngineDied, match="exit code" if os.name == "nt" else "SIGKILL") as caught:
                list(stream)
            assert caught.value.remedy
            assert list(stream) == []
            assert stream.result.finish_reason is FinishReason.ERROR
            assert min(stream.result.usage.prompt_tokens, stream.result.usage.new_tokens) > 0
        assert not process.alive
        assert (process.running, process.waiting, process.memory()) == (0, 0, 0)
        assert list(process.generate(PROMPT, GREEDY)) == list(engine.generate(PROMPT, GREEDY))
        assert process.pid != first
        assert process.restarts == 1


@pytest.mark.integration
def test_queued_requests_are_retried_on_a_new_child(nano_artifact: Path, engine: Engine) -> None:
    with ProcessEngine.load(nano_artifact, threads=1, slots=1) as process:
        running = process.generate(PROMPT, ENDLESS)
        next(running)
        waiting = [process.generate(PROMPT[at:], GREEDY) for at in range(4)]
        waiting[3].cancel()
        psutil.Process(process.pid).kill()
        with pytest.raises(EngineDied):
            list(running)
        for at, stream in enumerate(waiting[:3]):
            assert list(stream) == list(engine.generate(PROMPT[at:], GREEDY))
            assert stream.result.timings.time_to_first_token > stream.result.timings.prefill_seconds
        assert list(waiting[3]) == []
        assert process.restarts == 1


@pytest.mark.integration
def test_queued_requests_fail_if_no_child_can_be_started(nano_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gptoss_runtime.engine_process.engine._MAX_CRASHES", 1)
    with ProcessEngine.load(nano_artifact, threads=1, slots=1) as process:
        running, waiting = process.generate(PROMPT, ENDLESS), process.generate(PROMPT, GREEDY)
        next(running)
        psutil.Process(process.pid).kill()
        for stream in (running, waiting):
            with pytest.raises(EngineDied):
                list(stream)
            assert list(stream) == []


@pytest.mark.integration
def test_killed_while_idle(nano_artifact: Path) -> None:
    with ProcessEngine.load(nano_artifact, threads=1) as process:
        psutil.Process(process.pid).kill()
        assert has_ended(process.pid)
        process._child._events_thread.join()
        found: list[int] = []
        threads = [threading.Thread(target=lambda: found.extend(process.generate(PROMPT, GREEDY))) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 24
        assert process.restarts == 1


@pytest.mark.integration
def test_restarts_are_limited(nano_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gptoss_runtime.engine_process.engine._CRASH_WINDOW", 10_000.0)
    with ProcessEngine.load(nano_artifact, threads=1) as process:
        for _ in range(3):
            stream = process.generate(PROMPT, ENDLESS)
            next(stream)
            psutil.Process(process.pid).kill()
            with pytest.raises(EngineDied):
                list(stream)
        for _ in range(2):
            with pytest.raises(EngineDied, match="3 times") as caught:
                process.generate(PROMPT, GREEDY)
            assert "seconds" in str(caught.value.remedy)
        assert process.restarts == 2
        monkeypatch.setattr("gptoss_runtime.engine_process.engine._CRASH_WINDOW", 0.0)
        assert len(list(process.generate(PROMPT, GREEDY))) == 8


def test_close_ends_the_child_and_all_generations(nano_artifact: Path) -> None:
    process = ProcessEngine.load(nano_artifact, threads=1, slots=1)
    stream, waiting = process.generate(PROMPT, ENDLESS), process.generate(PROMPT, ENDLESS)
    next(stream)
    process.close()
    process.close()
    assert has_ended(process.pid)
    assert not process.alive
    for generation in (stream, waiting):
        with pytest.raises(BackendError, match="closed"):
            list(generation)
    with pytest.raises(BackendError, match="closed"):
        process.generate(PROMPT)
    with pytest.raises(BackendError, match="closed"):
        process.logits(PROMPT)
    stream.close()


def damaged(nano_artifact: Path, folder: Path) -> Path:
    copy = folder / "damaged"
    shutil.copytree(nano_artifact, copy, ignore=shutil.ignore_patterns("model.onnx.data"))
    (copy / "model.onnx.data").write_bytes(b"short")
    return copy


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (ArtifactError, {"path": "missing"}),
        (ArtifactError, {"path": "damaged"}),
        (BackendUnavailable, {"provider": "nonsense"}),
        (InvalidRequest, {"threads": 0}),
        (InvalidRequest, {"slots": 0}),
        (InvalidRequest, {"context_length": 1}),
    ],
    ids=str,
)
def test_load_errors_are_raised_in_the_parent(
    kind: type[GptOssError], options: dict[str, object], nano_artifact: Path, tmp_path: Path
) -> None:
    paths = {"missing": lambda: tmp_path / "missing", "damaged": lambda: damaged(nano_artifact, tmp_path)}
    path = paths.get(str(options.pop("path", "")), lambda: nano_artifact)()
    with pytest.raises(kind) as expected:
        load_engine(path, **options)  # type: ignore[arg-type]
    with pytest.raises(kind) as actual:
        ProcessEngine.load(path, **options)  # type: ignore[arg-type]
    assert type(actual.value) is type(expected.value)
    assert str(actual.value) == str(expected.value)
    assert actual.value.remedy == expected.value.remedy


@pytest.mark.parametrize("queue", [-1, True, 1.5])
def test_bad_queue_lengths(nano_artifact: Path, queue: int) -> None:
    with pytest.raises(InvalidRequest, match="queue"):
        ProcessEngine.load(nano_artifact, queue=queue)


def test_a_crash_while_loading(nano_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_before_genai(tmp_path, monkeypatch, "import os; os.write(2, b'out of luck\\n'); os._exit(41)")
    with pytest.raises(EngineDied, match=r"exit code 41; .*: out of luck"):
        ProcessEngine.load(nano_artifact)


def test_an_unexpected_error_while_loading(
    nano_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_before_genai(tmp_path, monkeypatch, "raise ZeroDivisionError('odd')")
    with pytest.raises(BackendError, match="ZeroDivisionError: odd") as caught:
        ProcessEngine.load(nano_artifact)
    assert "report" in str(caught.value.remedy)


@pytest.mark.integration
def test_a_lost_device_restarts_the_child(nano_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lost = """
from gptoss_runtime.engine import genai
from gptoss_runtime.errors import DeviceLost
append = genai._Sequence.append
def lose(self, tokens):
    if 77 in tokens:
        raise DeviceLost("the adapter was reset", remedy="Load again.")
    append(self, tokens)
genai._Sequence.append = lose
"""
    run_before_genai(tmp_path, monkeypatch, lost)
    with ProcessEngine.load(nano_artifact, threads=1) as process:
        stream = process.generate(PROMPT, ENDLESS)
        next(stream)
        with pytest.raises(DeviceLost, match="reset"):
            list(process.generate([77], GREEDY))
        with pytest.raises(EngineDied):
            list(stream)
        assert len(list(process.generate(PROMPT, GREEDY))) == 8
        assert process.restarts == 1


@pytest.mark.integration
@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit on a process's memory")
def test_out_of_memory_while_generating(nano_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limited = """
import resource
from gptoss_runtime.engine import genai
init = genai._Sequence.__init__
def limit(self, engine, capacity):
    if capacity > 2048:
        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (2 << 20), resource.RLIM_INFINITY))
    try:
        init(self, engine, capacity)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
genai._Sequence.__init__ = limit
"""
    run_before_genai(tmp_path, monkeypatch, limited)
    with ProcessEngine.load(nano_artifact, threads=1) as process:
        expected = list(process.generate(PROMPT, GREEDY))
        with pytest.raises(ResourceError):
            next(process.generate(PROMPT * 150, GREEDY))
        assert list(process.generate(PROMPT, GREEDY)) == expected
        assert process.restarts == 0


def test_output_of_native_code_does_not_reach_stdout(
    nano_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    noise = "import os; os.write(1, b'native noise\\n' * 50_000); print('noise')"
    run_before_genai(tmp_path, monkeypatch, noise)
    with ProcessEngine.load(nano_artifact, threads=1) as process:
        assert len(list(process.generate(PROMPT, GREEDY))) == 8
    assert capfd.readouterr().out == ""


@pytest.mark.integration
def test_the_child_ends_when_its_parent_dies(nano_artifact: Path) -> None:
    code = (  # passed with -c, so there is no __main__ module to import
        "import time\nfrom gptoss_runtime import GenerationOptions, ProcessEngine\n"
        f"engine = ProcessEngine.load({str(nano_artifact)!r}, threads=1)\n"
        "busy = engine.generate([1, 2, 3], GenerationOptions(stop_token_ids=()))\n"
        "print(engine.pid, flush=True)\ntime.sleep(600)\n"
    )
    for method in ("kill", "terminate"):
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
            assert parent.stdout is not None
            pid = int(parent.stdout.readline())
            assert psutil.pid_exists(pid)
            getattr(parent, method)()
        assert has_ended(pid)


@pytest.mark.integration
def test_the_child_ends_when_the_program_ends(nano_artifact: Path) -> None:
    code = (
        "from gptoss_runtime.engine_process.engine import ProcessEngine\n"
        f"engine = ProcessEngine.load({str(nano_artifact)!r}, threads=1)\n"
        "generation = engine.generate([1, 2, 3])\nnext(generation)\nprint(engine.pid)\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    assert done.returncode == 0
    assert has_ended(int(done.stdout))


@pytest.mark.skipif(os.name == "nt", reason="on Windows, Ctrl+C does not reach a process without a console window")
def test_the_child_ignores_interrupts(nano_artifact: Path) -> None:
    with ProcessEngine.load(nano_artifact, threads=1) as process:
        os.kill(process.pid, signal.SIGINT)
        assert len(list(process.generate(PROMPT, GREEDY))) == 8
        assert process.restarts == 0


def test_no_socket_is_inherited(nano_artifact: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.set_inheritable(True)
        address = server.getsockname()
        process = ProcessEngine.load(nano_artifact, threads=1)
    with process, pytest.raises(ConnectionRefusedError):
        socket.create_connection(address, timeout=5)


def test_a_relative_path(nano_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(nano_artifact.parent)
    with ProcessEngine.load(nano_artifact.name, threads=1) as process:
        assert process.info.target == "cpu"


def test_a_frozen_program_does_not_start_itself(nano_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.raises(BackendUnavailable, match="frozen"):
        ProcessEngine.load(nano_artifact)
