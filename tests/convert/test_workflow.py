from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptoss_convert import smoke, targets
from gptoss_convert.checkpoint import Checkpoint, StoredTensor
from gptoss_convert.errors import (
    CheckpointError,
    ConversionError,
    MemoryLimitTooLow,
    OutputError,
    OutputExists,
    WorkflowError,
)
from gptoss_convert.export_info import ExportInfo
from gptoss_convert.partial import locate_partial
from gptoss_convert.workflow import Options, config_dir, convert
from gptoss_runtime.artifact.folder import Artifact
from gptoss_runtime.errors import GptOssError

from .conftest import write_tiny


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def assert_refused(error: type[GptOssError], checkpoint: Path, out: Path, words: str, **arguments: Any) -> None:
    """The conversion fails with this error and leaves the output's parent folder unchanged."""
    before = sorted(out.parent.iterdir()) if out.parent.is_dir() else []
    with pytest.raises(error, match=words) as caught:
        convert(checkpoint, out, **arguments)
    assert caught.value.remedy
    after = sorted(out.parent.iterdir()) if out.parent.is_dir() else []
    assert [path for path in after if path != locate_partial(out)] == before
    if locate_partial(out) in after:  # weights, for another try: nothing that could be taken for an artifact
        assert issubclass(error, OutputError)
        assert "--resume" in str(caught.value.remedy)
        kept = {path.name for path in locate_partial(out).rglob("*")}
        assert kept <= {"weights", "journal.jsonl", "model.onnx.data", "lock"}


@pytest.mark.parametrize("target", targets.names())
def test_the_same_input_makes_the_same_bytes(target: str, tiny: Path, tmp_path: Path) -> None:
    elsewhere = Path(shutil.copytree(tiny, tmp_path / "elsewhere" / "tiny"))
    done: list[tuple[int, int]] = []
    convert(tiny, tmp_path / "one", target=target, progress=lambda *at: done.append(at))
    convert(elsewhere, tmp_path / "two", target=target)
    assert files(tmp_path / "one") == files(tmp_path / "two")
    assert done[-1][0] == done[-1][1] > 0


def test_an_artifact_says_where_it_came_from(tiny: Path, tmp_path: Path) -> None:
    manifest = convert(tiny, tmp_path / "out", options=Options(name="mine"))
    artifact = Artifact.open(tmp_path / "out", verify=True)
    assert artifact.manifest == manifest
    assert (manifest.name, manifest.target, manifest.preset, manifest.source.name) == (
        "mine",
        "cpu",
        "balanced",
        "tiny",
    )
    assert set(manifest.source.files) == {"config.json", "model.safetensors"}
    assert manifest.groups["experts"].scheme == "mxfp4"
    assert manifest.groups["experts"].snr_db is None
    attention = manifest.groups["attention"].snr_db
    assert attention is not None
    assert attention > 35
    assert manifest.memory.peak > manifest.memory.weights == manifest.files["model.onnx.data"].size
    assert str(tmp_path) not in (tmp_path / "out" / "manifest.json").read_text("utf-8")
    assert json.loads((tmp_path / "out" / "inference_model.json").read_text("utf-8"))["Name"] == "mine"


def test_a_hub_cache_folder_tells_repository_and_commit(tiny: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--openai--gpt-oss-9b" / "snapshots" / "abc123"
    shutil.copytree(tiny, snapshot)
    manifest = convert(snapshot, tmp_path / "out")
    assert (manifest.source.name, manifest.source.revision) == ("openai/gpt-oss-9b", "abc123")
    assert manifest.name == "gpt-oss-9b-cpu"


def test_experts_are_the_checkpoints_own_bytes(tiny: Path, tmp_path: Path) -> None:
    convert(tiny, tmp_path / "out")
    data, checkpoint = (tmp_path / "out" / "model.onnx.data").read_bytes(), Checkpoint.open(tiny)
    for name in ("gate_up_proj_blocks", "down_proj_blocks", "gate_up_proj_scales", "down_proj_scales"):
        assert checkpoint.array(f"model.layers.1.mlp.experts.{name}").tobytes() in data


def test_shards_make_the_same_model_as_one_file(tiny: Path, sharded: Path, tmp_path: Path) -> None:
    for source, out in ((tiny, "one"), (sharded, "many")):
        convert(source, tmp_path / out, options=Options(name="same"))
    assert files(tmp_path / "one")["model.onnx"] == files(tmp_path / "many")["model.onnx"]


@pytest.mark.parametrize("schemes", [None, {"experts": "float32"}, {"experts": "int8"}])
def test_float_experts_convert(schemes: dict[str, str] | None, tmp_path: Path) -> None:
    source = write_tiny(tmp_path / "float", mxfp4=False)
    manifest = convert(source, tmp_path / "out", options=Options(quantisation=schemes))
    assert (manifest.groups["experts"].snr_db is None) == (schemes == {"experts": "float32"})


def run_stock_olive(folder: Path) -> None:
    """``olive run`` of the workflow.json in a folder, with that folder as the working directory."""
    olive = [sys.executable, "-m", "olive", "run", "--config", "workflow.json", "--package-config"]
    done = subprocess.run(
        [*olive, str(config_dir() / "package.json")],
        cwd=folder,
        env={**os.environ, "OLIVE_DISABLE_TELEMETRY": "1"},
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.integration
def test_stock_olive_makes_the_same_bytes(tiny: Path, tmp_path: Path) -> None:
    workflow = json.loads((config_dir() / "cpu.json").read_text("utf-8"))
    workflow["input_model"]["model_path"] = str(tiny)
    workflow["output_dir"] = str(tmp_path / "olive")
    (tmp_path / "workflow.json").write_text(json.dumps(workflow), encoding="utf-8")
    run_stock_olive(tmp_path)
    convert(tiny, tmp_path / "ours")
    ours, theirs = files(tmp_path / "ours"), files(tmp_path / "olive")
    assert {name: theirs.get(name) for name in ours} == ours


NAMES_HERE = ("cpu", "smallest", "last", "int8", "mine", "lm_head", "model.onnx", "model.onnx.data")


def folder_of_names(tmp_path: Path) -> Path:
    """A folder with files that have the names of settings and of an export's files."""
    here = tmp_path / "here"
    for name in NAMES_HERE:
        if name.startswith("model"):
            (here / name).write_text("not a model", encoding="utf-8")
        else:
            (here / name).mkdir(parents=True)
    return here


def test_settings_that_are_names_of_files(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Olive turns every string in a config into a path if a file or folder has that name."""
    options = Options("smallest", {"lm_head": {"type": "int8", "block_size": 64}}, "mine", "last")
    convert(tiny, tmp_path / "elsewhere", options=options)
    monkeypatch.chdir(folder_of_names(tmp_path))
    assert convert(tiny, tmp_path / "out", options=options).name == "mine"
    assert files(tmp_path / "out") == files(tmp_path / "elsewhere")


@pytest.mark.skipif(sys.platform == "win32", reason="creating a symbolic link takes a right that users lack")
def test_a_setting_that_is_the_name_of_a_link(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "cpu").symlink_to(tmp_path / "other")
    monkeypatch.chdir(tmp_path / "here")
    assert convert(tiny, tmp_path / "out").target == "cpu"


def test_paths_that_olive_made_are_names_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gptoss_convert.passes import restore_names

    monkeypatch.chdir(tmp_path)
    here = Path.cwd().resolve()
    assert restore_names(str(here / "cpu")) == "cpu"
    assert restore_names({"lm_head": {"type": str(here / "int8"), "block_size": 64}}) == {
        "lm_head": {"type": "int8", "block_size": 64}
    }
    assert restore_names(str(here / "owner" / "model")) == "owner/model"
    for other in ("cpu", "owner/model", None, str(here.parent / "elsewhere")):
        assert restore_names(other) == other


@pytest.mark.integration
def test_stock_olive_in_a_folder_with_such_names(tiny: Path, tmp_path: Path) -> None:
    here = folder_of_names(tmp_path)
    workflow = json.loads((config_dir() / "cpu.json").read_text("utf-8"))
    workflow["input_model"]["model_path"] = str(tiny)
    workflow["output_dir"] = str(tmp_path / "olive")
    workflow["passes"]["export"] |= {"preset": "smallest", "logits": "last", "quantisation": {"lm_head": "int8"}}
    workflow["passes"]["artifact"]["name"] = "mine"
    (here / "workflow.json").write_text(json.dumps(workflow), encoding="utf-8")
    run_stock_olive(here)
    options = Options("smallest", {"lm_head": "int8"}, "mine")
    convert(tiny, tmp_path / "ours", options=options)
    ours, theirs = files(tmp_path / "ours"), files(tmp_path / "olive")
    assert {name: theirs.get(name) for name in ours} == ours


def test_an_export_report_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "older.json").write_text('{"target": "cpu"}', encoding="utf-8")
    for name in ("older.json", "missing.json"):
        with pytest.raises(WorkflowError, match=f"{name}: not readable") as caught:
            ExportInfo.load(tmp_path / name)
        assert caught.value.remedy


def test_a_config_of_ones_own(tiny: Path, tmp_path: Path) -> None:
    workflow = json.loads((config_dir() / "cpu.json").read_text("utf-8"))
    workflow["passes"]["export"] |= {
        "preset": "smallest",
        "quantisation": {"lm_head": {"type": "int8", "block_size": 64}},
    }
    (tmp_path / "mine.json").write_text(json.dumps(workflow), encoding="utf-8")
    manifest = convert(tiny, tmp_path / "out", target=str(tmp_path / "mine.json"))
    assert manifest.groups["lm_head"].scheme == "int8 block 64"
    assert manifest.groups["attention"].scheme == "int4 block 32"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"target": "vulkan"}, "no target 'vulkan'"),
        ({"target": "missing.json"}, "missing.json"),
        ({"options": Options(preset="best")}, "no preset 'best'"),
        ({"options": Options(quantisation={"experts": "int3"})}, "experts"),
        ({"options": Options(quantisation={"norms": "int8"})}, "norms"),
        ({"options": Options(quantisation={"attention": "mxfp4"})}, "attention cannot be mxfp4"),
        ({"options": Options(quantisation={"experts": "float16"})}, "no float16"),
        (
            {"options": Options(quantisation={"attention": {"type": "int8", "block_size": 128}})},
            "divide into blocks of 128",
        ),
        ({"options": Options(logits="first")}, "logits"),
    ],
)
def test_invalid_options(arguments: dict[str, Any], words: str, tiny: Path, tmp_path: Path) -> None:
    assert_refused(WorkflowError, tiny, tmp_path / "out", words, **arguments)


@pytest.mark.parametrize(
    ("step", "changes"),
    [
        ("export", None),
        ("artifact", None),
        ("export", {"target": None}),
        ("export", {"target": 3}),
        ("export", {"preset": ["balanced"]}),
        ("export", {"quantisation": "int4"}),
        ("export", {"quantisation": ["int4"]}),
        ("export", {"type": 3}),
    ],
)
def test_configs_with_mistakes(step: str, changes: Any, tiny: Path, tmp_path: Path) -> None:
    workflow = json.loads((config_dir() / "cpu.json").read_text("utf-8"))
    if changes is None:
        del workflow["passes"][step]
    else:
        workflow["passes"][step] |= changes
    (tmp_path / "other.json").write_text(json.dumps(workflow), encoding="utf-8")
    assert_refused(WorkflowError, tiny, tmp_path / "out", "other.json", target=str(tmp_path / "other.json"))


def test_errors_that_only_olive_finds(tiny: Path, tmp_path: Path) -> None:
    workflow = json.loads((config_dir() / "cpu.json").read_text("utf-8"))
    for change, words in (
        ({"systems": 3}, "Olive failed"),
        ({"passes": workflow["passes"] | {"more": {"type": "NoSuchPass"}}}, "nosuchpass"),
        ({"passes": dict(reversed(workflow["passes"].items()))}, "no model of GptOssExport before it"),
    ):
        (tmp_path / "other.json").write_text(json.dumps(workflow | change), encoding="utf-8")
        assert_refused(WorkflowError, tiny, tmp_path / "out", words, target=str(tmp_path / "other.json"))


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"passes": {"x": {"type": "OnnxConversion"}}}', "[" * 100_000], ids=range(5)
)
def test_configs_without_our_pass(text: str, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text(text, encoding="utf-8")
    assert_refused(WorkflowError, tiny, tmp_path / "out", "other.json", target=str(tmp_path / "other.json"))


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000], ids=range(4))
def test_a_damaged_generation_config(text: str, breakable: Path, tmp_path: Path) -> None:
    (breakable / "generation_config.json").write_text(text, encoding="utf-8")
    assert_refused(CheckpointError, breakable, tmp_path / "out", "generation_config.json")


def test_a_generation_config_that_leaves_tokens_open(breakable: Path, tmp_path: Path) -> None:
    given = {"bos_token_id": None, "eos_token_id": [7, 8], "pad_token_id": None, "temperature": 0.5}
    (breakable / "generation_config.json").write_text(json.dumps(given), encoding="utf-8")
    convert(breakable, tmp_path / "out")
    model = json.loads((tmp_path / "out" / "genai_config.json").read_text("utf-8"))["model"]
    assert (model["bos_token_id"], model["eos_token_id"], model["pad_token_id"]) == (1, [7, 8], 0)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "config.json", "model.safetensors"])
def test_an_incomplete_checkpoint(name: str, breakable: Path, tmp_path: Path) -> None:
    def early(*_: int) -> None:
        pytest.fail("weights were written first")

    (breakable / name).unlink()
    assert_refused(CheckpointError, breakable, tmp_path / "out", name.removeprefix("model"), progress=early)


def test_a_checkpoint_damaged_after_it_was_opened(
    breakable: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = StoredTensor.array

    def truncated(self: StoredTensor, *rows: Any) -> Any:
        if "layers.1" in self.name:
            self.file.write_bytes(b"")
        return array(self, *rows)

    monkeypatch.setattr(StoredTensor, "array", truncated)
    assert_refused(CheckpointError, breakable, tmp_path / "out", "model.safetensors: cannot read")


def test_weights_that_are_not_numbers(breakable: Path, tmp_path: Path) -> None:
    tensor = Checkpoint.open(breakable).tensors["model.norm.weight"]
    with tensor.file.open("r+b") as file:
        file.seek(tensor.offset)
        file.write(np.full(tensor.nbytes // 2, 0x7FC0, np.uint16).tobytes())
    assert_refused(ConversionError, breakable, tmp_path / "out", "not finite")


@pytest.mark.parametrize("target", targets.names())
def test_an_expert_that_is_not_numbers_and_never_chosen(target: str, tmp_path: Path) -> None:
    source = write_tiny(tmp_path / "float", mxfp4=False)
    checkpoint = Checkpoint.open(source)
    with checkpoint.tensors["model.norm.weight"].file.open("r+b") as file:
        for name, value in (("router.bias", 0xC7C3), ("experts.down_proj", 0x7FC0)):  # -100,000; NaN
            tensor = checkpoint.tensors[f"model.layers.1.mlp.{name}"]
            file.seek(tensor.offset + tensor.nbytes - 2)  # of the last expert
            file.write(value.to_bytes(2, "little"))
    assert_refused(CheckpointError, source, tmp_path / "out", "down_proj.*not finite", target=target)


def test_paths_of_other_alphabets_and_from_a_folder_of_ones_own(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Path(shutil.copytree(tiny, tmp_path / "模型 π"))
    monkeypatch.chdir(tmp_path)
    manifest = convert(source.name, Path("данные") / "путь")
    assert manifest.name == "模型 π-cpu"
    assert Artifact.open(tmp_path / "данные" / "путь", verify=True).manifest == manifest
    assert [path.name for path in (tmp_path / "данные").iterdir()] == ["путь"]


def test_a_failure_leaves_no_parents_either(tiny: Path, tmp_path: Path) -> None:
    assert_refused(WorkflowError, tiny, tmp_path / "deep" / "er" / "out", "logits", options=Options(logits="first"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_an_interrupt_keeps_written_weights(share: float, tiny: Path, tmp_path: Path) -> None:
    out, seen = tmp_path / "out", list[int]()

    def interrupt(done: int, total: int) -> None:
        if done >= share * total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(tiny, out, progress=interrupt)
    assert list(tmp_path.iterdir()) == ([locate_partial(out)] if share else [])
    convert(tiny, out, options=Options(resume=True), progress=lambda done, total: seen.append(done))
    convert(tiny, tmp_path / "fresh")
    assert files(out) == files(tmp_path / "fresh")
    assert not locate_partial(out).exists()
    assert seen[0] >= share * 0.9 * seen[-1]  # what was there is not made again


def test_without_resume_it_begins_anew(tiny: Path, tmp_path: Path) -> None:
    out, seen = tmp_path / "out", list[int]()

    def interrupt(done: int, total: int) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(tiny, out, progress=interrupt)
    convert(tiny, out, progress=lambda done, total: seen.append(done))
    assert seen[0] < seen[-1] / 2


def test_other_options_are_not_resumed(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def interrupt(done: int, total: int) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(tiny, out, progress=interrupt)
    convert(tiny, out, options=Options(preset="smallest", resume=True))
    convert(tiny, tmp_path / "fresh", options=Options(preset="smallest"))
    assert files(out) == files(tmp_path / "fresh")


def test_two_conversions_to_one_folder(tiny: Path, tmp_path: Path) -> None:
    def other(done: int, total: int) -> None:
        if done == total:
            with pytest.raises(OutputError, match="another conversion is writing"):
                convert(tiny, tmp_path / "out")

    convert(tiny, tmp_path / "out", progress=other)
    assert Artifact.open(tmp_path / "out", verify=True)


def test_a_checkpoint_that_changes_meanwhile(breakable: Path, tmp_path: Path) -> None:
    def touch(done: int, total: int) -> None:
        shard = breakable / "model.safetensors"
        os.utime(shard, ns=(1, shard.stat().st_mtime_ns + 1))

    assert_refused(CheckpointError, breakable, tmp_path / "out", "changed while it was converted", progress=touch)


@pytest.mark.parametrize("way", ["SHA256SUMS", "download", "cache"])
def test_a_shard_whose_checksum_is_known(way: str, breakable: Path, tmp_path: Path) -> None:
    shard = breakable / "model.safetensors"
    digest = hashlib.sha256(shard.read_bytes()).hexdigest()
    if way == "SHA256SUMS":
        (breakable / way).write_text(f"{digest} *{shard.name}\n", encoding="ascii")
    elif way == "download":
        metadata = breakable / ".cache" / "huggingface" / "download" / f"{shard.name}.metadata"
        metadata.parent.mkdir(parents=True)
        metadata.write_text(f"commit\n{digest}\n1700000000.0\n", encoding="ascii")
    else:
        blob = tmp_path / "blobs" / digest
        blob.parent.mkdir()
        shard.rename(blob)
        try:
            shard.symlink_to(blob)
        except OSError as error:
            pytest.skip(f"no symbolic links here: {error}")
    convert(breakable, tmp_path / "whole")
    with shard.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        byte = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([byte[0] ^ 1]))
    assert_refused(CheckpointError, breakable, tmp_path / "out", f"damaged: its sha256 is .* not {digest}")


def test_weights_in_several_files(tiny: Path, tmp_path: Path) -> None:
    limit = 80_000
    manifest = convert(tiny, tmp_path / "out", options=Options(max_file_size=limit))
    parts = {name: entry.size for name, entry in manifest.files.items() if name.startswith("model.onnx.data")}
    assert len(parts) == 2
    assert max(parts.values()) <= limit
    assert manifest.memory.weights == sum(parts.values())
    Artifact.open(tmp_path / "out", verify=True)
    convert(tiny, tmp_path / "one")
    one, several = (smoke.run_once(tmp_path / name / "model.onnx") for name in ("one", "out"))
    assert (one == several).all()


def test_too_little_memory(tiny: Path, tmp_path: Path) -> None:
    assert_refused(
        MemoryLimitTooLow, tiny, tmp_path / "out", "before the first weight", options=Options(max_memory=1 << 20)
    )


@pytest.mark.parametrize("name", ["journal.jsonl", "model.onnx.data", "genai_config.json", "manifest.json"])
def test_a_full_disk(name: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full to stand in for a full disk")
    opened = Path.open

    def full(self: Path, mode: str = "r", *others: Any, **named: Any) -> Any:
        writes = mode in ("ab", "wb", "w") and (mode, name) != (
            "wb",
            "model.onnx.data",
        )
        return opened(Path("/dev/full") if self.name == name and writes else self, mode, *others, **named)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", full)
        assert_refused(OutputError, tiny, tmp_path / "out", "No space left")
    convert(tiny, tmp_path / "out", options=Options(resume=True))
    convert(tiny, tmp_path / "fresh")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fresh", "out"]
    assert files(tmp_path / "out") == files(tmp_path / "fresh")


@pytest.mark.parametrize("step", ["export.ir.save", "output.shutil.copyfile", "artifact.shutil.copyfile"])
def test_other_writes_that_fail(step: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(f"gptoss_convert.{step}", refuse)
    monkeypatch.setattr("gptoss_convert.output.os.link", refuse)  # a file system without hard links
    assert_refused(OutputError, tiny, tmp_path / "out", "No space left")


def test_a_file_system_without_hard_links(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    convert(tiny, tmp_path / "linked")
    monkeypatch.setattr("gptoss_convert.output.os.link", refuse)
    convert(tiny, tmp_path / "copied")
    assert files(tmp_path / "linked") == files(tmp_path / "copied")


def test_weights_that_another_program_changes(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads = smoke.require_loadable

    def flip(model: Path) -> None:
        loads(model)
        with model.with_name("model.onnx.data").open("r+b") as file:
            file.write(b"other")

    monkeypatch.setattr(smoke, "require_loadable", flip)
    assert_refused(OutputError, tiny, tmp_path / "out", "no longer has the bytes that were written")


def test_invalid_output_paths(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    assert_refused(OutputError, tiny, tmp_path / "file" / "out", "file")
    assert_refused(OutputExists, tiny, tmp_path / "file", "already exists")
    assert_refused(OutputExists, tiny, tmp_path / "file", "won't be replaced", options=Options(overwrite=True))
    assert (tmp_path / "file").read_text("utf-8") == "mine"


def test_an_earlier_artifact_is_replaced_only_if_asked(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert(tiny, out)
    before = files(out)
    assert_refused(OutputExists, tiny, out, "already exists")
    assert_refused(WorkflowError, tiny, out, "no preset", options=Options(preset="best", overwrite=True))
    assert files(out) == before
    convert(tiny, out, options=Options(preset="smallest", overwrite=True))
    assert files(out) != before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("target", targets.names())
def test_a_scale_that_is_not_a_number(target: str, breakable: Path, tmp_path: Path) -> None:
    tensor = Checkpoint.open(breakable).tensors["model.layers.1.mlp.experts.down_proj_scales"]
    with tensor.file.open("r+b") as file:
        file.seek(tensor.offset + 5)
        file.write(b"\xff")
    assert_refused(CheckpointError, breakable, tmp_path / "out", "down_proj_scales holds 255", target=target)


def test_a_setting_that_olive_would_ignore(tiny: Path, tmp_path: Path) -> None:
    workflow = json.loads((config_dir() / "cpu.json").read_text("utf-8"))
    workflow["passes"]["export"]["quantization"] = {"lm_head": "int4"}
    (tmp_path / "typo.json").write_text(json.dumps(workflow), encoding="utf-8")
    assert_refused(WorkflowError, tiny, tmp_path / "out", "no setting quantization", target=str(tmp_path / "typo.json"))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("tokenizer.json", "{"),
        ("tokenizer_config.json", "[]"),
        ("generation_config.json", '{"eos_token_id": "<|x|>"}'),
        ("special_tokens_map.json", '{"a": 1, "a": 2}'),
    ],
)
def test_tokenizer_files_that_would_not_load(name: str, text: str, breakable: Path, tmp_path: Path) -> None:
    (breakable / name).write_text(text, encoding="utf-8")
    assert_refused(CheckpointError, breakable, tmp_path / "out", name.split("_")[0].removesuffix(".json"))


def test_the_current_folder(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert_refused(OutputError, tiny, Path(), "current folder")


def test_a_folder_of_another_tool_is_not_replaced(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "stock"
    out.mkdir()
    (out / "genai_config.json").write_text("{}", encoding="utf-8")
    assert_refused(OutputExists, tiny, out, "no manifest.json", options=Options(overwrite=True))


def test_the_settings_that_are_known_are_the_passes() -> None:
    from gptoss_convert import passes
    from gptoss_convert.workflow import _PASS_KEYS

    for kind in (passes.GptOssExport, passes.GptOssArtifact):
        assert _PASS_KEYS[kind.__name__.lower()] == set(kind._default_config(None))
