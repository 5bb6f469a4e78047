"""Writing weights: the files, and what remains after an interruption at any point."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import BinaryIO

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from gptoss_convert.data_files import DataFiles
from gptoss_convert.errors import MemoryLimitTooLow, OutputError
from gptoss_convert.weights import Recipe, RecipeResult, TensorSpec
from gptoss_convert.writing import WriteOptions, write

KILLS = 60


def recipe(name: str, size: int, group: str = "g", error: float | None = None, made: list[str] | None = None) -> Recipe:
    def make() -> RecipeResult:
        if made is not None:
            made.append(name)
        values = np.random.default_rng(list(name.encode())).integers(0, 256, size, np.uint8)
        return RecipeResult([values], error, 4.0)

    return Recipe((TensorSpec(name, ir.DataType.UINT8, (size,)),), make, group, "plain", size)


def recipes(made: list[str] | None = None) -> list[Recipe]:
    """Recipes of small weights, weights of several chunks, and an empty one."""
    sizes = [100, 1 << 20, 0, 7, (9 << 20) + 3, 64, 1 << 16, 5000]
    return [recipe(f"w{i}", size, "abc"[i % 3], float(i), made) for i, size in enumerate(sizes)]


def content(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.glob("data*")}


def test_files_and_checksums(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    (tmp_path / "data").write_bytes(b"old" * 10**6)
    made = write(recipes(), tmp_path, "data", WriteOptions(lambda done, total: seen.append((done, total))))
    data = (tmp_path / "data").read_bytes()
    assert len(data) == made.nbytes
    assert made.checksums == content(tmp_path)
    for one in recipes():
        file, start, length = made.extents[one.outputs[0].name]
        assert file == "data"
        assert data[start : start + length] == one.make().arrays[0].tobytes()
    assert seen == sorted(seen)
    assert seen[-1] == (made.nbytes, made.nbytes)
    assert made.groups["b"].snr_db == pytest.approx(10 * np.log10(12 / 12))
    assert made.groups["b"].tensors == 3


def test_several_files(tmp_path: Path) -> None:
    made = write(recipes(), tmp_path, "data", WriteOptions(file_limit=10 << 20))
    assert set(made.files) == {"data", "data.1"}
    assert made.checksums == content(tmp_path)
    for one in recipes():
        file, start, length = made.extents[one.outputs[0].name]
        assert (tmp_path / file).read_bytes()[start : start + length] == one.make().arrays[0].tobytes()


def test_nothing_to_write(tmp_path: Path) -> None:
    made = write([], tmp_path, "data")
    assert (made.nbytes, made.extents, (tmp_path / "data").read_bytes()) == (0, {}, b"")


def test_an_output_that_is_not_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(OutputError) as caught:
        write(recipes(), tmp_path / "file", "data")
    assert caught.value.remedy


def test_a_disk_that_is_too_small_is_noticed_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    usage = shutil.disk_usage(tmp_path)._replace(free=1 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OutputError, match="are still to be written"):
        write(recipes(made), tmp_path, "data")
    assert made == []


def test_bytes_changed_on_disk_are_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    settings = WriteOptions(journal=tmp_path / "journal", request="r")

    class Lying:
        def __init__(self, stream: BinaryIO) -> None:
            self._stream = stream

        def write(self, data: memoryview) -> int:
            return self._stream.write(bytes(data).replace(b"\x05", b"\x04"))

        def close(self) -> None:
            self._stream.close()

    stream = DataFiles._stream
    with monkeypatch.context() as patched:
        patched.setattr(DataFiles, "_stream", lambda files, name: Lying(stream(files, name)))
        whole = write(recipes(), tmp_path, "data", settings)
    assert whole.checksums != content(tmp_path)
    assert write(recipes(made), tmp_path, "data", settings).checksums == whole.checksums == content(tmp_path)
    assert made


def test_a_disk_that_fills_up_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    settings = WriteOptions(journal=tmp_path / "journal", request="r")
    whole = write(recipes(), tmp_path, "data").checksums

    class Full:
        def __init__(self, stream: BinaryIO) -> None:
            self._stream, self._left = stream, 3 << 20

        def write(self, data: memoryview) -> int:
            if self._left <= 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "data")
            self._left -= len(data)
            return self._stream.write(data)

        def close(self) -> None:
            self._stream.close()

    stream = DataFiles._stream

    def full(files: DataFiles, name: str) -> BinaryIO:
        if name not in files._streams:
            files._streams[name] = Full(stream(files, name))  # type: ignore[assignment]
        return files._streams[name]

    with monkeypatch.context() as patched:
        patched.setattr(DataFiles, "_stream", full)
        with pytest.raises(OutputError, match="No space left"):
            write(recipes(made), tmp_path, "data", settings)
    assert write(recipes(made), tmp_path, "data", settings).checksums == whole
    assert made.count("w0") == made.count("w3") == 1


def test_too_little_memory_is_reported_first(tmp_path: Path) -> None:
    with pytest.raises(MemoryLimitTooLow, match="making w4 takes"):
        write(recipes(), tmp_path, "data", WriteOptions(memory=1 << 20))
    assert not (tmp_path / "data").exists()


def test_another_request_is_not_continued(tmp_path: Path) -> None:
    made: list[str] = []
    write(recipes(made), tmp_path, "data", WriteOptions(journal=tmp_path / "journal", request="one"))
    write(recipes(made), tmp_path, "data", WriteOptions(journal=tmp_path / "journal", request="other"))
    assert made.count("w0") == 2
    write(recipes(made), tmp_path, "data", WriteOptions(journal=tmp_path / "journal", request="other"))
    assert made.count("w0") == 2


@pytest.mark.parametrize("damage", ["flip", "shorter", "gone", "torn journal", "no journal"])
def test_damaged_weights_are_written_again(damage: str, tmp_path: Path) -> None:
    settings, made = WriteOptions(journal=tmp_path / "journal", request="r"), list[str]()
    whole = write(recipes(), tmp_path, "data", settings)
    data, journal = tmp_path / "data", tmp_path / "journal"
    at = whole.extents["w4"].offset + 5
    if damage == "flip":
        with data.open("r+b") as file:
            file.seek(at)
            byte = file.read(1)
            file.seek(at)
            file.write(bytes([byte[0] ^ 1]))
    elif damage == "shorter":
        os.truncate(data, at)
    elif damage == "gone":
        data.unlink()
    elif damage == "torn journal":
        os.truncate(journal, journal.stat().st_size - 3)
    else:
        journal.unlink()
    again = write(recipes(made), tmp_path, "data", settings)
    assert again.checksums == whole.checksums == content(tmp_path)
    assert again.groups == whole.groups
    expected = {"flip": 4, "shorter": 4, "torn journal": 1}.get(damage, 8)
    assert len(made) == expected
    assert len(journal.read_text("utf-8").splitlines()) == 9


KILLED = """
import json, os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tests.convert.test_writing import recipes
from gptoss_convert import writing

def run(folder, stop_at):
    written = 0
    def write(fd, data):
        nonlocal written
        if stop_at is not None and written + len(data) > stop_at:
            os.write(fd, bytes(data)[: stop_at - written])
            os.kill(os.getpid(), signal.SIGKILL)
        written += len(data)
        return os.write(fd, data)
    class Stream:
        def __init__(self, raw): self.raw = raw
        def write(self, data): return write(self.raw.fileno(), data)
        def __getattr__(self, name): return getattr(self.raw, name)
    opened = Path.open
    def open_(path, mode="r", *a, **k):
        stream = opened(path, mode, *a, **k)
        return Stream(stream) if mode == "ab" else stream
    Path.open = open_
    made = []
    settings = writing.WriteOptions(journal=folder / "journal", request="r", file_limit=10 << 20)
    files = writing.write(recipes(made), folder, "data", settings).checksums
    (folder / "done.json").write_text(json.dumps([files, made]))

for number, stop_at in enumerate(json.loads(sys.argv[3])):
    folder = Path(sys.argv[2]) / str(number)
    folder.mkdir()
    for at in (stop_at, None):
        child = os.fork()
        if child == 0:
            try:
                run(folder, at)
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        if at is not None:
            journal = folder / "journal"
            kept = max(0, journal.read_bytes().count(b"\\n") - 1) if journal.exists() else 0
    files, made = json.loads((folder / "done.json").read_text())
    print(json.dumps([files, made, kept]))
"""


@pytest.mark.integration
@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked to be killed; Windows has no fork")
def test_killed_at_any_byte_it_is_resumed_to_the_same_bytes(tmp_path: Path) -> None:
    """In the middle of a weight or of a journal line; recipes in the journal do not run again."""
    whole = write(recipes(), tmp_path, "data", WriteOptions(file_limit=10 << 20))
    rng, ends = random.Random(0), [extent.offset + extent.length for extent in whole.extents.values()]
    near = [end + 250 * number + rng.randrange(-200, 400) for number, end in enumerate(ends) for _ in range(5)]
    points = [*near, *(rng.randrange(whole.nbytes + 2000) for _ in range(KILLS - len(near)))]
    (tmp_path / "runs").mkdir()
    root = Path(__file__).parents[2]
    line = [sys.executable, "-c", KILLED, str(root), str(tmp_path / "runs"), json.dumps(points)]
    done = subprocess.run(line, capture_output=True, text=True, encoding="utf-8", timeout=300)
    assert done.returncode == 0, done.stderr
    results = [json.loads(text) for text in done.stdout.splitlines()]
    assert len(results) == KILLS
    for files, made, kept in results:
        assert files == whole.checksums
        assert len(made) == 8 - kept
    assert len({len(made) for _, made, _ in results}) > 4  # they were killed at different places


def test_exact_bytes_of_every_type(tmp_path: Path) -> None:
    values = np.arange(8, dtype=np.float32).astype(ml_dtypes.bfloat16)
    one = Recipe((TensorSpec("b", ir.DataType.BFLOAT16, (8,)),), lambda: RecipeResult([values]), "g", "bfloat16")
    write([one], tmp_path, "data")
    assert (tmp_path / "data").read_bytes() == values.tobytes()
