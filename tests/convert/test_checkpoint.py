from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gptoss_convert.checkpoint import Checkpoint, read_header
from gptoss_convert.errors import CheckpointError, UnsupportedModel

from .conftest import write_tiny

INDEX = "model.safetensors.index.json"


def assert_refused(folder: Path, names: str, error: type[CheckpointError] = CheckpointError) -> None:
    with pytest.raises(error) as caught:
        Checkpoint.open(folder)
    assert names in caught.value.message
    assert str(folder) in caught.value.message
    assert caught.value.remedy


def edit(file: Path, change: Callable[[Any], None]) -> None:
    value = json.loads(file.read_text("utf-8"))
    change(value)
    file.write_text(json.dumps(value), "utf-8")


def rewrite_header(file: Path, change: Callable[[Any], None]) -> None:
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def lead(folder: Path, name: object) -> None:
    edit(folder / INDEX, lambda index: index["weight_map"].update({"lm_head.weight": name}))


def test_tensors_are_read_as_stored(tiny: Path) -> None:
    checkpoint = Checkpoint.open(tiny)
    assert checkpoint.has_mxfp4_experts
    assert checkpoint.array("model.norm.weight").dtype.name == "bfloat16"
    blocks = checkpoint.array("model.layers.1.mlp.experts.down_proj_blocks")
    assert blocks.shape == (4, 64, 2, 16)
    assert (checkpoint.array("model.layers.1.mlp.experts.down_proj_blocks", 1, 3) == blocks[1:3]).all()
    names = [f"model.layers.0.self_attn.{name}_proj.weight" for name in "qkv"]
    whole = np.concatenate([checkpoint.array(name) for name in names])
    assert (checkpoint.concatenate(names) == whole).all()
    for start, end in ((0, 1), (len(whole) - 1, len(whole)), (3, len(whole) - 3)):
        assert (checkpoint.concatenate(names, start, end) == whole[start:end]).all()


def test_shards_are_one_checkpoint(sharded: Path, tiny: Path) -> None:
    checkpoint = Checkpoint.open(sharded)
    assert [file.name for file in checkpoint.files] == [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    assert set(checkpoint.tensors) == set(Checkpoint.open(tiny).tensors)


def test_a_missing_folder_and_an_empty_one(tmp_path: Path) -> None:
    assert_refused(tmp_path / "nowhere", "nowhere")
    assert_refused(tmp_path, "config.json")


def test_no_weights(breakable: Path) -> None:
    (breakable / "model.safetensors").unlink()
    assert_refused(breakable, "no *.safetensors")


def test_a_missing_shard(sharded: Path) -> None:
    (sharded / "model-00002-of-00003.safetensors").unlink()
    assert_refused(sharded, "model-00002-of-00003.safetensors: missing, but named by")


def test_a_shard_that_the_index_leaves_out(sharded: Path) -> None:
    def forget(index: Any) -> None:
        index["weight_map"] = {name: file for name, file in index["weight_map"].items() if "00002" not in file}

    edit(sharded / INDEX, forget)
    assert_refused(sharded, "is missing from 2 shard(s)")


@pytest.mark.parametrize("keep", [0, 3, 8, 40, -1])
def test_a_truncated_shard(breakable: Path, keep: int) -> None:
    file = breakable / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    assert_refused(breakable, "model.safetensors: truncated")


def test_a_truncated_shard_among_whole_ones(sharded: Path) -> None:
    file = sharded / "model-00003-of-00003.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert_refused(sharded, "model-00003-of-00003.safetensors: truncated")


@pytest.mark.parametrize(
    "content",
    [
        b"\xff" * 64,
        b"PK\x03\x04" + bytes(60),
        (100 << 20).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        (2).to_bytes(8, "little") + b"\xff\xfe",
        (5000).to_bytes(8, "little") + b"[" * 5000,
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 4792272488\n",
    ],
    ids=["ones", "zip", "long header", "list", "not utf-8", "deep", "git-lfs pointer"],
)
def test_a_file_that_is_not_safetensors(breakable: Path, content: bytes) -> None:
    (breakable / "model.safetensors").write_bytes(content)
    assert_refused(breakable, "model.safetensors: ")


def test_folders_in_the_place_of_files(breakable: Path) -> None:
    for name in ("model.safetensors", "config.json"):
        (breakable / name).unlink()
        (breakable / name).mkdir()
        assert_refused(breakable, name)


def test_a_folder_without_permission(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_dir", refuse)
    assert_refused(tiny, "Permission denied")


def test_a_tensor_of_another_shape(breakable: Path) -> None:
    def swap(header: Any) -> None:
        entry = header["model.layers.0.self_attn.q_proj.weight"]
        entry["shape"] = [entry["shape"][1], entry["shape"][0]]

    rewrite_header(breakable / "model.safetensors", swap)
    assert_refused(breakable, "model.safetensors: model.layers.0.self_attn.q_proj.weight is BF16 [64, 128]")


@pytest.mark.parametrize(("name", "dtype"), [("lm_head.weight", "F8_E4M3"), ("model.norm.weight", "I16")])
def test_a_tensor_of_another_type(breakable: Path, name: str, dtype: str) -> None:
    def retype(header: Any) -> None:
        header[name]["dtype"] = dtype

    rewrite_header(breakable / "model.safetensors", retype)
    assert_refused(breakable, f"model.safetensors: {name} is {dtype}")


def test_a_missing_tensor(breakable: Path) -> None:
    rewrite_header(breakable / "model.safetensors", lambda header: header.pop("model.layers.1.self_attn.sinks"))
    assert_refused(breakable, "model.layers.1.self_attn.sinks is missing")


def test_a_tensor_that_does_not_fill_its_bytes(breakable: Path) -> None:
    def shrink(header: Any) -> None:
        header["lm_head.weight"]["shape"][0] -= 1

    rewrite_header(breakable / "model.safetensors", shrink)
    assert_refused(breakable, "model.safetensors: malformed")


@pytest.mark.parametrize(
    "name",
    [
        *(
            "../elsewhere",
            "/etc/passwd",
            "a/b",
            "..\\elsewhere",
            "a\\b",
            "\\\\host\\share",
            "C:model",
            "C:\\model",
            "C:/model",
        ),
        *("..", ".", "", "file:stream", "model\0.safetensors"),
    ],
)
def test_an_index_that_leads_outside(sharded: Path, name: str) -> None:
    lead(sharded, name)
    assert_refused(sharded, f"{INDEX}: names {name!r}, which is not a file in this folder")


@pytest.mark.parametrize("name", [7, None, ["model-00001-of-00003.safetensors"]])
def test_an_index_of_other_things_than_names(sharded: Path, name: object) -> None:
    lead(sharded, name)
    assert_refused(sharded, INDEX)


def test_an_index_that_leads_outside_by_an_existing_path(sharded: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.safetensors"
    outside.write_bytes((sharded / "model-00001-of-00003.safetensors").read_bytes())
    for name in (str(outside), "../outside.safetensors"):
        lead(sharded, name)
        assert_refused(sharded, "which is not a file in this folder")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": 3}', "\x00", "[" * 100_000], ids=range(6))
def test_a_malformed_index(sharded: Path, text: str) -> None:
    (sharded / INDEX).write_text(text, encoding="utf-8")
    assert_refused(sharded, INDEX)


@pytest.mark.parametrize("text", ["", "{", "\xff"])
def test_a_malformed_config(breakable: Path, text: str) -> None:
    (breakable / "config.json").write_text(text, encoding="latin-1")
    assert_refused(breakable, "config.json")


@pytest.mark.parametrize("text", ["[]", "3", "{}", '{"model_type": "llama"}'])
def test_another_architecture(breakable: Path, text: str) -> None:
    (breakable / "config.json").write_text(text, encoding="utf-8")
    assert_refused(breakable, "gpt_oss", UnsupportedModel)


@pytest.mark.parametrize("key", ["hidden_size", "num_local_experts", "vocab_size", "num_hidden_layers"])
def test_a_config_of_other_dimensions(breakable: Path, key: str) -> None:
    def double(config: Any) -> None:
        config[key] *= 2
        config.pop("layer_types", None)

    edit(breakable / "config.json", double)
    assert_refused(breakable, str(breakable))


@pytest.mark.parametrize(
    ("key", "value"),
    [("hidden_size", 48), ("intermediate_size", 33), ("num_hidden_layers", 0), ("num_experts_per_tok", 9)],
)
def test_dimensions_that_no_kernel_takes(breakable: Path, key: str, value: int) -> None:
    edit(breakable / "config.json", lambda config: config.update({key: value}))
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(breakable)
    assert caught.value.remedy


@pytest.mark.parametrize("value", [None, "many", [], {}])
def test_a_config_with_nonsense(breakable: Path, value: object) -> None:
    edit(breakable / "config.json", lambda config: config.update(num_attention_heads=value))
    assert_refused(breakable, "config.json")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_header_is_always_a_checkpoint_error(tiny: Path, tmp_path: Path, data: st.DataObject) -> None:
    file = tmp_path / "damaged.safetensors"
    content = bytearray((tiny / "model.safetensors").read_bytes()[:6000])
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, 2000))] = data.draw(st.integers(0, 255))
    file.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    with pytest.raises(CheckpointError, match=r"damaged\.safetensors"):  # it is cut short at the least
        read_header(file)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    entry=st.recursive(
        st.none() | st.integers() | st.text() | st.floats(allow_nan=False),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(("dtype", "shape", "data_offsets")), inner)
        ),
        max_leaves=8,
    )
)
def test_a_header_of_any_json_is_read_or_refused(tmp_path: Path, entry: object) -> None:
    file = tmp_path / "any.safetensors"
    text = json.dumps({"tensor": entry}).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text)
    with contextlib.suppress(CheckpointError):
        read_header(file)


def test_float_experts(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write_tiny(tmp_path / "float", mxfp4=False))
    assert not checkpoint.has_mxfp4_experts
    assert checkpoint.array("model.layers.0.mlp.experts.gate_up_proj").shape == (4, 64, 128)
