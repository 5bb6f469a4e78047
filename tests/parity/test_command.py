"""``gptoss parity`` as a user types it: references from folders and files, texts, limits, exit codes, JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from gptoss_convert.errors import NonFiniteLogits
from gptoss_convert.parity import measure as parities
from gptoss_convert.parity import streaming
from gptoss_convert.parity.checkpoint_reference import CheckpointReference
from gptoss_convert.parity.reference_file import SavedReference
from gptoss_convert.workflow import Options, convert
from gptoss_runtime.cli.main import app
from gptoss_runtime.cli.render import print_json
from tests.convert.conftest import TINY, write_tiny

Gptoss = Callable[..., Result]


@pytest.fixture
def gptoss(monkeypatch: pytest.MonkeyPatch) -> Gptoss:
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *arguments: CliRunner().invoke(app, ["parity", *(str(argument) for argument in arguments)])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture(scope="module")
def artifact(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("artifact") / "tiny"
    convert(checkpoint, out, options=Options(preset="smallest"))
    return out


def strict(text: str) -> Any:
    """Parses strict JSON: NaN and Infinity, which Python accepts, are errors."""

    def refuse(constant: str) -> Any:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def reported(result: Result, code: int = 0) -> Any:
    assert result.exit_code == code, result.output
    return strict(result.stdout)


def figures(report: dict[str, Any]) -> dict[str, Any]:
    """The measured figures, without costs and paths."""
    return {name: report[name] for name in ("prefill", "steps", "max_abs", "mean_kl", "top1", "tokens", "layers")}


def test_a_saved_reference_gives_the_checkpoints_figures(
    gptoss: Gptoss, checkpoint: Path, artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small vocabulary is kept whole, and the checkpoint is not needed afterwards."""
    file = tmp_path / "reference.npz"
    options = ("--sequences", 3, "--length", 40, "--seed", 5)
    common = ("--reference", checkpoint, *options, "--json")
    saved = reported(gptoss("--save-reference", file, *common))
    assert saved["saved"] == str(file)
    assert saved["saved_tokens"] == 120
    assert saved["saved_bytes"] == file.stat().st_size
    live = reported(gptoss(artifact, *common))
    both = reported(gptoss(artifact, "--save-reference", tmp_path / "again.npz", *common))
    assert (tmp_path / "again.npz").read_bytes() == file.read_bytes()
    monkeypatch.setattr(streaming, "compute_final_states", None)
    carried = reported(gptoss(artifact, "--reference", file, "--json"))
    for other in (both, carried):
        for way in ("prefill", "steps"):
            assert other[way] == pytest.approx(live[way], rel=1e-5)
        assert other["reference"] == live["reference"] == "tiny"
        assert other["same_source"]
    assert live["prefill"]["tokens"] == 24
    assert live["steps"]["tokens"] == 40
    assert live["error"] is None


def test_fewer_tokens_kept_are_a_lower_bound(gptoss: Gptoss, checkpoint: Path, artifact: Path, tmp_path: Path) -> None:
    whole, some = tmp_path / "whole.npz", tmp_path / "some.npz"
    for file, keep in ((whole, 96), (some, 8)):
        common = ("--reference", checkpoint, "--save-reference", file, "--keep", keep, "--length", 20, "--json")
        reported(gptoss(*common))
    assert some.stat().st_size < whole.stat().st_size / 3
    exact, bound = (reported(gptoss(artifact, "--reference", file, "--json")) for file in (whole, some))
    assert 0 < bound["mean_kl"] < exact["mean_kl"]
    assert bound["top1"] == exact["top1"]


@pytest.mark.integration
def test_nanos_saved_reference_is_as_good_as_its_checkpoint(
    gptoss: Gptoss, nano_checkpoint: Path, nano_artifact: Path, tmp_path: Path
) -> None:
    """1,024 of 201,088 tokens are kept, on a text given by the user."""
    text = tmp_path / "weather.txt"
    text.write_text("<|start|>user<|message|>What is 27 + 45? Grüße 🙂<|end|><|start|>assistant" * 4, encoding="utf-8")
    common = ("--reference", nano_checkpoint, "--text", text, "--length", 50, "--sequences", 2)
    file = tmp_path / "reference.npz"
    live = reported(gptoss(nano_artifact, *common, "--save-reference", file, "--json"))
    carried = reported(gptoss(nano_artifact, "--reference", file, "--json"))
    assert live["text"] == carried["text"] == "weather.txt"
    assert live["sequences"] == 2
    assert live["steps"]["tokens"] == 50
    for way in ("prefill", "steps"):
        assert carried[way]["mean_kl"] == pytest.approx(live[way]["mean_kl"], rel=0.02)
        assert carried[way]["mean_kl"] <= live[way]["mean_kl"]
        assert carried[way]["top1"] == live[way]["top1"]
    assert SavedReference.read(file).tokens[0] == 200006  # <|start|>, encoded as a special token
    assert live["saved_bytes"] < 1e6


def test_a_limit_on_the_divergence(gptoss: Gptoss, checkpoint: Path, artifact: Path) -> None:
    common = (artifact, "--reference", checkpoint, "--length", 40)
    report = reported(gptoss(*common, "--max-kl", 1000, "--json"))
    assert report["error"] is None
    limit = report["mean_kl"] / 10
    failed = reported(gptoss(*common, "--max-kl", limit, "--json"), code=9)
    assert failed["error"]["type"] == "DivergenceTooLarge"
    assert figures(failed) == figures(report)
    in_words = gptoss(*common, "--max-kl", limit)
    assert in_words.exit_code == 9
    assert "step by step" in in_words.stdout
    assert "error: mean KL is" in in_words.stderr
    assert "nats, --max-kl" in in_words.stderr
    worse = max(report["prefill"]["mean_kl"], report["steps"]["mean_kl"])
    assert gptoss(*common, "--max-kl", worse).exit_code == 0
    assert gptoss(*common, "--max-kl", worse * 0.999).exit_code == 9  # one of the two measurements is enough


def test_logits_that_are_not_finite_are_a_failure_in_valid_json(
    gptoss: Gptoss, checkpoint: Path, artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is written, whatever the options."""
    iter_logits = parities.GenaiEngine.iter_logits

    def overflowing(self: Any, ids: Any, *, steps: int = 0) -> Any:
        for end, logits in iter_logits(self, ids, steps=steps):
            yield end, np.where(end == 23, np.float32(np.nan), logits)

    monkeypatch.setattr(parities.GenaiEngine, "iter_logits", overflowing)
    common = (artifact, "--reference", checkpoint, "--length", 40, "--record", "--report", tmp_path / "page.html")
    before = (artifact / "manifest.json").read_bytes()
    failed = reported(gptoss(*common, "--json"), code=9)
    assert failed["error"]["type"] == "NonFiniteLogits"
    assert failed["error"]["position"] == 22
    assert failed["error"]["path"] == "steps"
    in_words = gptoss(*common)
    assert in_words.exit_code == 9
    assert "logits are not finite after token 22 of sequence 0, step by step" in in_words.stderr
    assert not (tmp_path / "page.html").exists()
    assert (artifact / "manifest.json").read_bytes() == before


def test_nan_is_never_printed_as_json() -> None:
    from rich.console import Console

    with pytest.raises(ValueError, match="JSON compliant"):
        print_json(Console(), {"mean_kl": float("nan")})


@pytest.mark.integration
def test_layers(gptoss: Gptoss, checkpoint: Path, artifact: Path, tmp_path: Path) -> None:
    """Hidden states are saved in the file; a graph that does not name them is reported."""
    file = tmp_path / "reference.npz"
    assert gptoss("--reference", checkpoint, "--save-reference", file, "--layers", "--length", 30).exit_code == 0
    states = SavedReference.read(file).hidden_states
    assert states is not None
    assert states.shape == (3, 30, 64)
    for reference in (file, checkpoint):
        report = reported(gptoss(artifact, "--reference", reference, "--layers", "--json"))
        assert (report["layers"] is None) != (report["no_layers"] is None)
        assert "hidden states" in gptoss(artifact, "--reference", reference, "--layers").stdout
    bare = tmp_path / "bare.npz"
    assert gptoss("--reference", checkpoint, "--save-reference", bare, "--length", 30).exit_code == 0
    without = gptoss(artifact, "--reference", bare, "--layers").stdout
    assert "not available: the reference has no hidden states" in without


def test_invalid_options_are_refused_before_the_reference_is_computed(
    gptoss: Gptoss, checkpoint: Path, artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, text, empty, binary = (tmp_path / name for name in ("reference.npz", "text", "empty", "binary"))
    assert gptoss("--reference", checkpoint, "--save-reference", file, "--length", 5).exit_code == 0
    text.write_text("a" * 50, encoding="utf-8")
    empty.write_text("", encoding="utf-8")
    binary.write_bytes(b"\xff\xfe\xff")
    damaged = tmp_path / "damaged.npz"
    damaged.write_bytes(file.read_bytes()[:-100])
    other = write_tiny(tmp_path / "other", TINY | {"max_position_embeddings": 128})
    monkeypatch.setattr(CheckpointReference, "compute", None)
    live = ("--reference", checkpoint)
    refusals: list[tuple[int, str, tuple[Any, ...]]] = [
        (2, "no artifact to compare", live),
        (2, "no artifact to compare", (*live, "--save-reference", tmp_path / "x", "--max-kl", 1)),
        (2, "no artifact to compare", (*live, "--save-reference", tmp_path / "x", "--record")),
        (2, "--max-kl", (artifact, *live, "--max-kl", "nan")),
        (2, "--length is 65", (artifact, *live, "--length", 65)),
        (2, "a sequence has 65 tokens", (artifact, "--reference", other, "--length", 65)),
        (2, "--seed with --text", (artifact, *live, "--seed", 1, "--text", text)),
        (2, "empty has 0 tokens", (artifact, *live, "--text", empty)),
        (2, "binary: ", (artifact, *live, "--text", binary)),
        (2, "nowhere: ", (artifact, *live, "--text", tmp_path / "nowhere")),
        (2, "has sequences of its own", (artifact, "--reference", file, "--length", 5)),
        (2, "has sequences of its own", (artifact, "--reference", file, "--text", text)),
        (2, "of a saved reference", (artifact, "--reference", file, "--save-reference", tmp_path / "x")),
        (3, "damaged.npz: not a readable reference", (artifact, "--reference", damaged)),
        (3, "nowhere: no such folder", (artifact, "--reference", tmp_path / "nowhere")),
        (4, "not an artifact", (checkpoint, "--reference", checkpoint)),
    ]
    for code, words, arguments in refusals:
        result = gptoss(*arguments)
        assert result.exit_code == code, (arguments, result.output)
        assert words in result.stderr
        assert not (tmp_path / "x").exists()


def test_a_reference_that_cannot_be_written(gptoss: Gptoss, checkpoint: Path, tmp_path: Path) -> None:
    result = gptoss("--reference", checkpoint, "--save-reference", tmp_path / "no folder" / "x", "--length", 5)
    assert result.exit_code == 5
    assert "no folder" in result.stderr


def test_errors_name_their_position(capsys: pytest.CaptureFixture[str]) -> None:
    error = NonFiniteLogits(path="prefill", sequence=1, position=7, layer=34)
    assert "after token 7 of sequence 1, prefill; hidden states are not after 34 layers" in str(error)
    assert strict(json.dumps(error.figures()))["layers"] == 34
