"""A target that is added as one module and one config: everything else finds it, and knows its execution provider."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import typer
from typer.testing import CliRunner

from gptoss_convert import targets, workflow
from gptoss_convert.cli import convert as command
from gptoss_convert.errors import WorkflowError
from gptoss_convert.workflow import convert
from gptoss_runtime.artifact.folder import Artifact
from gptoss_runtime.artifact.manifest import MANIFEST, Manifest
from gptoss_runtime.cli.main import app
from gptoss_runtime.errors import BackendUnavailable
from gptoss_runtime.models import Catalog, Registry
from gptoss_runtime.models.choosing import choose
from gptoss_runtime.server.engine_options import EngineOptions
from gptoss_runtime.server.model_host import ModelHost
from gptoss_runtime.server.served_models import ServedModels
from gptoss_runtime.server.settings import Settings
from tests.server.running import serving

MODULE = """
from dataclasses import replace

from gptoss_convert.targets.cpu_int4 import TARGET as CPU_INT4

TARGET = replace(CPU_INT4, name="{name}", summary="only here", provider="{provider}", provider_options={options})
"""
# By name: provider as the module declares it ("": as the name says), genai's options, the kind of device.
ADDED = {
    "example-8k": ("cpu", (), "CPU"),
    "webgpu-example": ("", ({"webgpu": {}},), "GPU"),
}


@pytest.fixture(autouse=True)
def added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The two files of each target, in a temporary folder."""
    modules = tmp_path / "targets"
    configs = Path(shutil.copytree(workflow.config_dir(), tmp_path / "olive_configs"))
    modules.mkdir()
    for name, (provider, options, _) in ADDED.items():
        text = MODULE.format(name=name, provider=provider, options=options)
        (modules / f"{name.replace('-', '_')}.py").write_text(text, encoding="utf-8")
        config = json.loads((configs / "cpu.json").read_text("utf-8"))
        config["passes"]["export"]["target"] = name
        (configs / f"{name}.json").write_text(json.dumps(config), encoding="utf-8")
    monkeypatch.setattr(targets, "__path__", [*targets.__path__, str(modules)])
    monkeypatch.setattr(workflow, "config_dir", lambda: configs)
    importlib.invalidate_caches()
    yield
    for name in ADDED:
        sys.modules.pop(f"gptoss_convert.targets.{name.replace('-', '_')}", None)


@pytest.fixture
def artifacts(tiny: Path, tmp_path: Path) -> Path:
    """A model converted for both targets and for the CPU, in the layout of a search folder."""
    for name in ("cpu", *ADDED):
        convert(tiny, tmp_path / "artifacts" / "tiny" / name, target=name)
    return tmp_path / "artifacts"


@pytest.fixture
def registry(artifacts: Path, tmp_path: Path) -> Registry:
    return Registry(tmp_path / "cache", search=[artifacts], catalog=Catalog(models={}))


def test_the_command_line_lists_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(ADDED) < set(targets.names())
    monkeypatch.setenv("COLUMNS", "200")
    one = typer.Typer()
    one.command()(importlib.reload(command).convert)
    text = " ".join(CliRunner().invoke(one, ["--help"]).output.split())
    assert ", ".join(targets.names()) in text
    with pytest.raises(WorkflowError) as caught:
        workflow.load("nowhere")
    for name in ADDED:
        assert f"{name} (only here)" in str(caught.value.remedy)


def test_the_manifest_names_its_provider(artifacts: Path) -> None:
    for name, (provider, _, _) in ADDED.items():
        folder = artifacts / "tiny" / name
        manifest = Manifest.read(folder)
        assert manifest.target == name
        assert Artifact.open(folder).provider == (provider or "webgpu")
        assert ("provider" in json.loads((folder / MANIFEST).read_bytes())) == bool(provider)
    assert "provider" not in json.loads((artifacts / "tiny" / "cpu" / MANIFEST).read_bytes())


def test_the_registry_chooses_among_them(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    variants = {variant.target: variant for variant in registry.list(here=True)}
    assert {name: variant.provider for name, variant in variants.items()} == {
        "cpu": "cpu",
        "example-8k": "cpu",
        "webgpu-example": "webgpu",
    }
    both = [variants["example-8k"], variants["webgpu-example"]]
    monkeypatch.setattr("gptoss_runtime.machine.installed.find_unmet", lambda *_: [])
    chosen = choose("tiny", both)
    assert (chosen.variant.target, chosen.placement.provider) == ("example-8k", "cpu")
    assert list(chosen.rejected) == ["webgpu-example"]  # a GPU's is preferred, and asked first
    with pytest.raises(BackendUnavailable, match="whether webgpu runs here"):
        choose("tiny", both[1:])
    assert choose("tiny", both, target="webgpu-example").placement.provider == "webgpu"


def test_the_commands_show_it(artifacts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPTOSS_ARTIFACTS", str(artifacts))
    monkeypatch.setenv("GPTOSS_CACHE", str(artifacts / "none"))
    listed = CliRunner().invoke(app, ["models", "list", "--here", "--json"])
    assert {variant["target"] for variant in json.loads(listed.stdout)} == {"cpu", *ADDED}
    for name in ADDED:
        seen = CliRunner().invoke(app, ["inspect", str(artifacts / "tiny" / name)])
        assert seen.exit_code == 0, seen.output
        assert f"target {name}," in seen.stdout


def test_foundrys_list_knows_its_device(registry: Registry, artifacts: Path, tmp_path: Path) -> None:
    """Also the device of an artifact without a manifest, which runs on the CPU."""
    (artifacts / "tiny" / "cpu" / MANIFEST).unlink()
    host = ModelHost(ServedModels(registry=registry), EngineOptions().load, cache=tmp_path)
    with serving(Settings(port=0, tell_date=False), host) as server:
        models = httpx.get(f"{server.url}/foundry/list").json()["models"]
    devices = {model["name"]: model["runtime"]["deviceType"] for model in models}
    assert devices == {"tiny:cpu": "CPU"} | {f"tiny:{name}": device for name, (_, _, device) in ADDED.items()}
