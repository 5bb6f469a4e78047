"""Conversions for CUDA: their files, and the providers and dimensions that are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gptoss_convert.errors import UnsupportedModel, WorkflowError
from gptoss_convert.workflow import Options, convert
from gptoss_runtime import load_engine
from gptoss_runtime.engine.genai import import_genai
from gptoss_runtime.errors import BackendUnavailable, GptOssError, InvalidRequest

from .conftest import write_tiny


def test_an_artifact_names_its_provider_as_genais_builder_does(tiny: Path, tmp_path: Path) -> None:
    manifest = convert(tiny, tmp_path / "out", target="cuda")
    assert (manifest.target, manifest.preset) == ("cuda", "balanced")
    assert manifest.requires == {"onnxruntime-gpu": ">=1.31", "onnxruntime-genai-cuda": ">=0.18"}
    assert manifest.groups["experts"].scheme == "int4 block 32"
    config = json.loads((tmp_path / "out" / "genai_config.json").read_text("utf-8"))
    options = config["model"]["decoder"]["session_options"]["provider_options"]
    assert options == [{"cuda": {"enable_cuda_graph": "0"}}]
    assert config["search"]["past_present_share_buffer"] is True


def test_mxfp4_experts_are_exact(tiny: Path, tmp_path: Path) -> None:
    manifest = convert(tiny, tmp_path / "out", target="cuda", options=Options(quantisation={"experts": "mxfp4"}))
    experts = manifest.groups["experts"]
    assert (experts.scheme, experts.snr_db, experts.max_error) == ("mxfp4", None, 0)


def test_another_provider_is_refused(tiny: Path, tmp_path: Path) -> None:
    """The CPU's QMoE would read int4 in CUDA's order as if it were in its own."""
    convert(tiny, tmp_path / "out", target="cuda")
    for provider in ("cpu", "webgpu"):
        with pytest.raises(InvalidRequest, match="laid out for cuda") as caught:
            load_engine(tmp_path / "out", provider=provider)
        assert "--provider cuda" in str(caught.value.remedy)


@pytest.mark.skipif(import_genai().is_cuda_available(), reason="this build has CUDA")
def test_a_build_without_cuda_names_the_one_that_has_it(tiny: Path, tmp_path: Path) -> None:
    convert(tiny, tmp_path / "out", target="cuda")
    with pytest.raises(BackendUnavailable, match=r"gptoss-windows\[cuda\]"):
        load_engine(tmp_path / "out", provider="cuda")


@pytest.mark.parametrize(
    ("experts", "error", "words"),
    [
        ("int4", UnsupportedModel, "multiples of 64, not 64 x 96"),
        ("int8", UnsupportedModel, "multiples of 64"),
        ("float32", WorkflowError, "no float32"),
    ],
)
def test_dimensions_that_cudas_kernels_refuse(
    experts: str, error: type[GptOssError], words: str, tmp_path: Path
) -> None:
    source = write_tiny(tmp_path / "tiny", {"intermediate_size": 96})
    assert_refused(source, tmp_path / "out", error, words, {"experts": experts})
    convert(source, tmp_path / "out", target="cuda", options=Options(quantisation={"experts": "mxfp4"}))


def test_blocks_of_16_have_no_kernel(tiny: Path, tmp_path: Path) -> None:
    schemes = {"experts": {"type": "int4", "block_size": 16}}
    assert_refused(tiny, tmp_path / "out", WorkflowError, "block 16 on CUDA", schemes)


def assert_refused(source: Path, out: Path, error: type[GptOssError], words: str, quantisation: dict[str, Any]) -> None:
    with pytest.raises(error, match=words) as caught:
        convert(source, out, target="cuda", options=Options(quantisation=quantisation))
    assert caught.value.remedy
    assert not out.exists()
