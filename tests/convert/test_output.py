from __future__ import annotations

from pathlib import Path

import pytest

from gptoss_convert.errors import OutputError, OutputExists
from gptoss_convert.output import publish, require_free, temporary_sibling


def build(folder: Path, text: str) -> Path:
    made = folder / "made"
    made.mkdir()
    (made / "marker").write_text(text, encoding="utf-8")
    return made


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An earlier output."""
    with temporary_sibling(tmp_path / "out") as folder:
        publish(build(folder, "old"), tmp_path / "out")
    return tmp_path / "out"


def test_a_finished_folder_appears(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with temporary_sibling(out) as folder:
        publish(build(folder, "one"), out)
    assert (out / "marker").read_text(encoding="utf-8") == "one"
    assert list(out.parent.iterdir()) == [out]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_output_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    def interrupted() -> None:
        with temporary_sibling(tmp_path / "out") as folder:
            build(folder, "half")
            raise error

    with pytest.raises(error):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_created_parents_are_removed_and_others_stay(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    out = tmp_path / "mine" / "deep" / "deeper" / "out"

    def failed() -> None:
        with temporary_sibling(out):
            raise RuntimeError

    with pytest.raises(RuntimeError):
        failed()
    assert list(tmp_path.rglob("*")) == [tmp_path / "mine"]


def test_a_folder_that_cannot_be_made_leaves_no_parents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("gptoss_convert.output.tempfile.mkdtemp", refuse)
    with pytest.raises(OutputError, match="Permission denied") as caught, temporary_sibling(tmp_path / "deep" / "out"):
        pass
    assert caught.value.remedy
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "exists", refuse)
    with pytest.raises(OutputError, match="Permission denied") as caught:
        require_free(tmp_path / "out", overwrite=True, marker="marker")
    monkeypatch.undo()
    assert caught.value.remedy


def test_a_new_folder_takes_the_place_of_an_old_one(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for text in ("old", "new"):
        with temporary_sibling(out) as folder:
            publish(build(folder, text), out)
    assert (out / "marker").read_text(encoding="utf-8") == "new"
    assert list(tmp_path.iterdir()) == [out]


def test_the_old_one_survives_an_interrupted_publish(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = Path.rename

    def interrupt(self: Path, target: Path) -> Path:
        moved = rename(self, target)
        if target.name == "replaced":
            raise KeyboardInterrupt
        return moved

    monkeypatch.setattr(Path, "rename", interrupt)
    with pytest.raises(KeyboardInterrupt), temporary_sibling(out) as folder:
        publish(build(folder, "new"), out)
    assert (out / "marker").read_text(encoding="utf-8") == "old"
    assert list(out.parent.iterdir()) == [out]


def test_the_old_one_survives_a_failed_publish(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if self.name == "made":
            raise PermissionError(13, "in use")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OutputError, match="in use"), temporary_sibling(out) as folder:
        publish(build(folder, "new"), out)
    assert (out / "marker").read_text(encoding="utf-8") == "old"
    assert list(out.parent.iterdir()) == [out]


def test_a_parent_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(OutputError) as caught, temporary_sibling(tmp_path / "file" / "out"):
        pass
    assert caught.value.remedy


def test_folders_that_may_be_replaced(tmp_path: Path) -> None:
    require_free(tmp_path / "absent", overwrite=False, marker="marker")
    require_free(tmp_path, overwrite=False, marker="marker")  # empty
    mine = tmp_path / "photo.jpg"
    mine.write_text("", encoding="utf-8")
    for path in (tmp_path, mine):
        for overwrite in (False, True):
            with pytest.raises(OutputExists) as caught:
                require_free(path, overwrite=overwrite, marker="marker")
            assert caught.value.remedy
    (tmp_path / "marker").write_text("", encoding="utf-8")
    require_free(tmp_path, overwrite=True, marker="marker")
    with pytest.raises(OutputExists):
        require_free(tmp_path, overwrite=False, marker="marker")
