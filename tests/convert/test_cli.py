"""The converter's commands through the runtime's ``gptoss``, as a user types them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from typer.testing import CliRunner, Result

from gptoss_convert.cli.convert import _parse_size
from gptoss_runtime.artifact.manifest import FileEntry, Manifest
from gptoss_runtime.cli.main import app

Gptoss = Callable[..., Result]


@pytest.fixture
def gptoss(monkeypatch: pytest.MonkeyPatch) -> Gptoss:
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


def reported(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_convert_and_inspect(gptoss: Gptoss, tiny: Path, tmp_path: Path) -> None:
    report = reported(gptoss("convert", tiny, "-o", tmp_path / "out", "--scheme", "lm_head=int4", "--json"))
    assert report["manifest"]["groups"]["lm_head"]["scheme"] == "int4 block 32"
    assert report["peak_memory"] > 0
    seen = reported(gptoss("inspect", tmp_path / "out", "--json"))
    assert seen["verified"]
    assert seen["graph"]["operators"]["com.microsoft::QMoE"] == 2
    assert seen["graph"]["cached"] == 4
    text = gptoss("inspect", tmp_path / "out").stdout
    for words in (
        "com.microsoft::GroupQueryAttention",
        "int4 block 32",
        "parity: not recorded",
        "all match the manifest",
    ):
        assert words in text


def test_convert_in_words(gptoss: Gptoss, tiny: Path, tmp_path: Path) -> None:
    result = gptoss("convert", tiny, "-o", tmp_path / "out", "--target", "cpu-int4", "--name", "small one")
    assert result.exit_code == 0
    for words in ("small one: ", "peak memory", "experts    int4 block 32", "dB SNR", "gptoss chat"):
        assert words in result.stdout


@pytest.mark.parametrize(
    ("text", "size"),
    [("4GB", 4 * 10**9), ("900MiB", 900 << 20), ("4gi", 4 << 30), (" 1.5 tb ", 15 * 10**11), ("4096", 4096)],
)
def test_a_size(text: str, size: int) -> None:
    assert _parse_size("max-memory", text) == size


@pytest.mark.parametrize("text", ["", "0", "0.5", "-4GB", "4GB please", "1.5.3", "4bit", "4PB", "1e3", "9" * 400])
def test_an_invalid_size(text: str, gptoss: Gptoss, tiny: Path, tmp_path: Path) -> None:
    result = gptoss("convert", tiny, "-o", tmp_path / "out", f"--max-file-size={text}")
    assert result.exit_code == 2
    assert "Give a size such as 4GB" in result.output


def test_failures_are_reported(gptoss: Gptoss, tiny: Path, tmp_path: Path) -> None:
    refusals = {
        ("convert", tmp_path / "nothing", "-o", tmp_path / "out"): (3, "no such folder", "Give the folder"),
        ("convert", tiny, "-o", tmp_path / "out", "-t", "vulkan"): (3, "no target 'vulkan'", "cpu-int4 ("),
        ("convert", tiny, "-o", tiny): (5, "already exists", "--overwrite"),
        ("convert", tiny, "-o", tiny, "--overwrite"): (5, "won't be replaced", "remove it yourself"),
        ("convert", tiny, "-o", tmp_path / "out", "--scheme", "lm_head"): (3, "lm_head", "Groups are"),
        ("nano", tiny / "config.json" / "x"): (5, "config.json", "may write"),
        ("inspect", tiny): (4, "not an artifact", "gptoss convert"),
    }
    for command, (code, message, remedy) in refusals.items():
        result = gptoss(*command)
        assert result.exit_code == code, result.output
        assert message in result.stderr
        assert remedy in result.stderr
        assert not (tmp_path / "out").exists()


def test_inspect_finds_damage(gptoss: Gptoss, tiny: Path, tmp_path: Path) -> None:
    gptoss("convert", tiny, "-o", tmp_path / "out")
    with (tmp_path / "out" / "model.onnx.data").open("r+b") as file:
        file.write(b"damage")
    result = gptoss("inspect", tmp_path / "out")
    assert result.exit_code == 4
    assert "model.onnx.data differs from the manifest (sha256)" in result.stderr
    assert gptoss("inspect", tmp_path / "out", "--no-verify").exit_code == 0


def test_inspect_lists_what_other_programs_would_run(gptoss: Gptoss, tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    gptoss("convert", tiny, "-o", out)
    assert reported(gptoss("inspect", out, "--json"))["elsewhere"] == []
    (out / "sub").mkdir()
    for name in ("kernel.dll", "libx.so.1", "modeling.py", "sub/weights.pkl", "chat_template.jinja"):
        (out / name).write_bytes(b"")
    (out / "processor.json").write_text('{"auto_map": {"AutoModel": "modeling.X"}, "chat_template": "{{ x }}"}')
    elsewhere = reported(gptoss("inspect", out, "--json"))["elsewhere"]
    for name, words in {
        "kernel.dll": "a program or a library",
        "libx.so.1": "a program or a library",
        "modeling.py": "a program or a library",
        "sub/weights.pkl": "perhaps a pickle",
        "chat_template.jinja": "render it, gptoss does not",
        "processor.json": "auto_map",
    }.items():
        assert any(one.startswith(f"{name}: ") and words in one for one in elsewhere), (name, elsewhere)
        assert f"{name}: not in the manifest, so not checked against it" in elsewhere
    text = gptoss("inspect", out).stdout
    assert "elsewhere: kernel.dll: a program or a library: other programs may run it, gptoss does not" in text
    assert "data: gptoss executes nothing of it" in text
    assert "all match the manifest's checksums, which are not signed" in text


def test_inspect_refuses_artifacts_that_are_not_only_data(gptoss: Gptoss, tiny: Path, tmp_path: Path) -> None:
    """Even if it matches its manifest, and in graphs that the configuration does not name."""
    out = tmp_path / "out"
    gptoss("convert", tiny, "-o", out)
    second = onnx.load(out / "model.onnx", load_external_data=False)
    second.graph.initializer[0].data_location = onnx.TensorProto.EXTERNAL
    second.graph.initializer[0].external_data.add(key="basepath", value="/etc")
    (out / "second.onnx").write_bytes(second.SerializeToString())
    result = gptoss("inspect", out)
    assert (result.exit_code, result.stdout) == (4, "")
    assert "second.onnx is unsafe" in result.stderr
    (out / "second.onnx").unlink()
    config = json.loads((out / "genai_config.json").read_text())
    options = config["model"]["decoder"]["session_options"]
    options |= {"custom_ops_library": "x.so", "enable_profiling": "y", "colour": "red"}
    (out / "genai_config.json").write_text(json.dumps(config))
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["files"]["genai_config.json"] = FileEntry.from_file(out / "genai_config.json").model_dump()
    (out / "manifest.json").write_text(json.dumps(manifest))
    for options in ([], ["--no-verify"], ["--json"]):
        result = gptoss("inspect", out, *options)
        assert (result.exit_code, result.stdout) == (4, "")
        for words in ("'model.decoder.session_options.custom_ops_library'", "enable_profiling", "colour"):
            assert words in result.stderr
        assert "onnxruntime-genai and Foundry Local would load it without these checks" in result.stderr
        assert "they would load that library and run its code" in result.stderr
        assert "they would write files there" in result.stderr


def test_a_stock_folder_is_shown_but_not_checked(gptoss: Gptoss, tiny: Path, tmp_path: Path) -> None:
    gptoss("convert", tiny, "-o", tmp_path / "out")
    (tmp_path / "out" / "manifest.json").unlink()
    result = gptoss("inspect", tmp_path / "out")
    assert result.exit_code == 0
    assert "not written by gptoss convert" in result.stdout
    assert "files: not checked" in result.stdout


def test_nano(gptoss: Gptoss, tmp_path: Path) -> None:
    report = reported(gptoss("nano", tmp_path / "nano", "--json"))
    assert report["bytes"] > 100e6
    assert gptoss("nano", tmp_path / "nano").exit_code == 5
    assert "gptoss convert" in gptoss("nano", tmp_path / "nano", "--overwrite").stdout


@pytest.mark.integration
def test_parity(gptoss: Gptoss, nano_checkpoint: Path, nano_artifact: Path, tmp_path: Path) -> None:
    artifact = Path(shutil.copytree(nano_artifact, tmp_path / "artifact"))
    common = ("parity", artifact, "--reference", nano_checkpoint, "--sequences", 1, "--length", 40)
    report = reported(gptoss(*common, "--report", tmp_path / "page.html", "--record", "--json"))
    assert report["tokens"] == 48  # prompts of 8 lengths, and step by step
    page = (tmp_path / "page.html").read_text("utf-8")
    assert page.startswith("<!doctype html>")
    assert "<svg" in page
    assert "&lt;|start|&gt;" in page
    recorded = Manifest.read(artifact).parity
    assert recorded is not None
    assert recorded.mean_kl == report["mean_kl"]
    assert "same top token" in gptoss(*common).stdout


def test_parity_report_that_cannot_be_written(
    gptoss: Gptoss, nano_checkpoint: Path, nano_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, target: Path) -> Path:
        raise PermissionError(13, "Permission denied")

    artifact = Path(shutil.copytree(nano_artifact, tmp_path / "artifact"))
    before = sorted(artifact.iterdir())
    common = ("parity", artifact, "--reference", nano_checkpoint, "--sequences", 1, "--length", 2)
    monkeypatch.setattr(Path, "replace", refuse)
    for option, name in (
        ("--record", "manifest.json"),
        (f"--report={tmp_path / 'no folder' / 'page.html'}", "page.html"),
    ):
        result = gptoss(*common, option)
        assert result.exit_code == 5
        assert name in result.stderr
        assert "may write" in result.stderr
    assert sorted(artifact.iterdir()) == before


def test_parity_of_another_vocabulary(gptoss: Gptoss, tiny: Path, nano_artifact: Path) -> None:
    result = gptoss("parity", nano_artifact, "--reference", tiny)
    assert result.exit_code == 3
    assert "201088" in result.stderr


@pytest.mark.integration
def test_demo(gptoss: Gptoss, tmp_path: Path) -> None:
    report = reported(gptoss("demo", "-o", tmp_path, "--json"))
    sums, record, weather = report["answers"]
    assert sums["answer"] == "27 + 45 = 72"
    assert json.loads(record["answer"]) == {"name": "Tom", "age": 34, "city": "Oslo"}
    assert weather["tool_calls"] == [{"name": "get_weather", "arguments": '{"city":"Paris"}'}]
    assert weather["answer"] == "It is 21 degrees and sunny in Paris."
    again = gptoss("demo", "-o", tmp_path)
    assert again.exit_code == 0
    assert "→ get_weather" in again.stdout
