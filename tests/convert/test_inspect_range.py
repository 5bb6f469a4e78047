"""The activation range in ``gptoss inspect``, as a conversion's first run measured it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from gptoss_convert.cli import inspect
from gptoss_runtime.artifact.manifest import MANIFEST, LayerRange, Manifest, Range
from gptoss_runtime.cli.main import app
from gptoss_runtime.cli.render import format_range
from gptoss_runtime.errors import ArtifactError

HEAD = LayerRange(layer=2, stream=900.0, headroom=12.0, tightest="head_input")
LAYERS = [
    LayerRange(layer=0, stream=35.0, headroom=9.5, tightest="scores"),
    LayerRange(layer=1, stream=45344.4, headroom=1.96, tightest="experts_product"),
]
FLOAT16 = Range(dtype="float16", tokens=512, embedding=3.0, layers=LAYERS, head=HEAD)
FLOAT32 = Range(
    dtype="float32",
    tokens=512,
    embedding=3.0,
    layers=[LayerRange(layer=layer, stream=10.0 - layer) for layer in range(2)],
    head=LayerRange(layer=2, stream=9.0),
)


def show(artifact: Path, folder: Path, found: Range | None) -> tuple[str, dict[str, Any]]:
    """Text and JSON for an artifact with this range in its manifest."""
    folder.mkdir()
    for path in artifact.iterdir():
        if path.name != MANIFEST:
            os.link(path, folder / path.name)
    manifest = json.loads((artifact / MANIFEST).read_text("utf-8"))
    manifest["range"] = None if found is None else found.model_dump()
    (folder / MANIFEST).write_text(json.dumps(manifest), "utf-8")
    text, said = (CliRunner().invoke(app, ["inspect", str(folder), *more]) for more in ([], ["--json"]))
    assert (text.exit_code, said.exit_code) == (0, 0), text.output + said.output
    return text.output, json.loads(said.stdout)


def test_float16(nano_artifact: Path, tmp_path: Path) -> None:
    text, said = show(nano_artifact, tmp_path / "a", FLOAT16)
    assert "range: the residual stream reaches 45,344 after layer 1 (512 tokens)" in text
    assert "headroom: 2^2.0 to float16's limit at layer 1 (experts_product)" in text
    assert said["range"]["low"]
    assert said["range"]["tightest"] == LAYERS[1].model_dump()
    assert [layer["stream"] for layer in said["manifest"]["range"]["layers"]] == [35.0, 45344.4]


@pytest.mark.integration
def test_float32_has_no_headroom_to_speak_of(nano_artifact: Path, tmp_path: Path) -> None:
    text, said = show(nano_artifact, tmp_path / "a", FLOAT32)
    assert "range: the residual stream reaches 10 after layer 0 (512 tokens)" in text
    assert "headroom" not in text
    assert (said["range"]["tightest"], said["range"]["low"]) == (None, False)


@pytest.mark.integration
def test_an_older_artifact(nano_artifact: Path, tmp_path: Path) -> None:
    text, said = show(nano_artifact, tmp_path / "a", None)
    assert "range: not measured" in text
    assert said["range"] is None


def test_a_range_without_layers_is_rejected(nano_artifact: Path, tmp_path: Path) -> None:
    manifest = json.loads((nano_artifact / MANIFEST).read_text("utf-8"))
    manifest["range"]["layers"] = []
    (tmp_path / MANIFEST).write_text(json.dumps(manifest), "utf-8")
    with pytest.raises(ArtifactError, match=r"range\.layers"):
        Manifest.read(tmp_path)


def test_a_conversion_measures(nano_artifact: Path) -> None:
    said = json.loads(CliRunner().invoke(app, ["inspect", str(nano_artifact), "--json"]).stdout)
    assert said["range"]["widest"] in said["manifest"]["range"]["layers"]


@pytest.mark.parametrize(("headroom", "low"), [(1.0, True), (1.99, True), (2.0, False), (12.0, False)])
def test_low_headroom(headroom: float, low: bool) -> None:
    layer = LAYERS[0].model_copy(update={"headroom": headroom})
    assert inspect._is_low(FLOAT16.model_copy(update={"layers": [layer]})) is low


def test_the_head_has_a_name() -> None:
    assert (
        format_range(
            FLOAT16.model_copy(update={"layers": LAYERS[:1], "head": HEAD.model_copy(update={"headroom": 1})})
        )[-1]
        == "headroom: 2^1.0 to float16's limit at the head (head_input)"
    )
