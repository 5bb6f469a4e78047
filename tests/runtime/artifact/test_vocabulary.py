from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from gptoss_runtime import ArtifactError, ResourceError
from gptoss_runtime.artifact.vocabulary import FILE_NAME, SHA256, build_vocabulary_folder, set_environment


def test_the_vocabulary_is_rebuilt_exactly_and_reused(nano_artifact: Path, tmp_path: Path) -> None:
    tokenizer = nano_artifact / "tokenizer.json"
    folder = build_vocabulary_folder(tokenizer, cache=tmp_path)
    path = folder / FILE_NAME
    assert hashlib.sha256(path.read_bytes()).hexdigest() == SHA256
    written = path.stat().st_mtime_ns
    assert build_vocabulary_folder(tokenizer, cache=tmp_path) == folder
    assert path.stat().st_mtime_ns == written
    path.write_bytes(b"damaged")
    build_vocabulary_folder(tokenizer, cache=tmp_path)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == SHA256
    assert list(folder.iterdir()) == [path]


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"model": {"vocab": {"a": 0}}, "added_tokens": []},
        {"model": {"vocab": {"☃": 0}}, "added_tokens": []},
        {"model": {"vocab": {"a": "0"}}, "added_tokens": []},
        {"model": {"vocab": []}, "added_tokens": []},
    ],
)
def test_another_tokenizer_is_rejected(tmp_path: Path, content: object) -> None:
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"tokenizer\.json"):
        build_vocabulary_folder(tokenizer, cache=tmp_path / "cache")
    with pytest.raises(ArtifactError):
        build_vocabulary_folder(tmp_path / "missing.json", cache=tmp_path)


def test_a_cache_that_cannot_be_written(nano_artifact: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(ResourceError):
        build_vocabulary_folder(nano_artifact / "tokenizer.json", cache=blocked)


def test_the_environment_is_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPTOSS_TEST", "old")
    with set_environment("GPTOSS_TEST", "new"):
        assert os.environ["GPTOSS_TEST"] == "new"
    assert os.environ["GPTOSS_TEST"] == "old"
    monkeypatch.delenv("GPTOSS_TEST")
    with set_environment("GPTOSS_TEST", "new"):
        pass
    assert "GPTOSS_TEST" not in os.environ
