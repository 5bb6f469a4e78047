"""Models by name: the catalog, artifacts on this machine, and the choice of a variant on made-up machines."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gptoss_convert.artifact import memory_budget
from gptoss_convert.checkpoint import Checkpoint
from gptoss_convert.export import weights_size
from gptoss_convert.schemes import resolve
from gptoss_convert.synthetic import write_checkpoint
from gptoss_convert.targets import cpu, cpu_int4, directml
from gptoss_runtime.artifact.manifest import Manifest
from gptoss_runtime.errors import (
    ArtifactError,
    BackendUnavailable,
    InvalidRequest,
    ModelNotFound,
    NoAdapter,
    ResourceError,
)
from gptoss_runtime.machine import adapters, hardware, installed
from gptoss_runtime.machine.adapters import Adapter
from gptoss_runtime.models import Catalog, Model, Published, Registry
from gptoss_runtime.models.choosing import choose

GB = 1 << 30
CARD = Adapter(0, "A Card", "NVIDIA", "0:1", 16 * GB, 32 * GB, False, "1.2.3.4", "12_2", 15 * GB, 0)
SMALL_CARD = replace(CARD, index=1, name="A Small Card", luid="0:2", dedicated_memory=8 * GB, budget=7 * GB)
DIRECTML = {"onnxruntime-directml": "1.24.4", "onnxruntime-genai-directml": "0.13.1"}
CPU = {"onnxruntime": "1.32.0", "onnxruntime-genai": "0.18.0"}

Machine = Callable[..., None]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    def machine(*found: Adapter, builds: dict[str, str], memory: int = 64 * GB, windows: bool = True) -> None:
        monkeypatch.setattr(hardware, "WINDOWS", windows)
        monkeypatch.setattr(adapters, "list_adapters", lambda: list(found))
        monkeypatch.setattr(installed, "find_builds", lambda: builds)
        monkeypatch.setattr(hardware, "cpu", lambda: hardware.Cpu(8, 16, memory, memory))

    return machine


@pytest.fixture(scope="module")
def packaged() -> Catalog:
    return Catalog.load()


def chosen(name: str = "gpt-oss-20b", **forced: Any) -> Any:
    variants = Registry(Path("nowhere"), search=[], catalog=Catalog.load()).info(name)
    return choose(name, variants, **forced)


@pytest.fixture(autouse=True)
def no_user_catalog(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("platformdirs.user_config_dir", lambda *_, **__: str(tmp_path / "config"))


@pytest.mark.parametrize(
    ("found", "builds", "memory", "target", "device"),
    [
        ([CARD], DIRECTML, 64 * GB, "directml", 0),
        ([SMALL_CARD, CARD], DIRECTML, 64 * GB, "directml", 0),
        ([SMALL_CARD], DIRECTML, 64 * GB, "cpu-int4", None),  # the build for DirectML is too old for MXFP4 on the CPU
        ([replace(CARD, feature_level=None)], DIRECTML, 64 * GB, "cpu-int4", None),
        ([CARD], CPU, 64 * GB, "cpu", None),
        ([], CPU, 64 * GB, "cpu", None),
        ([], CPU | {"onnxruntime": "1.30.1"}, 64 * GB, "cpu-int4", None),
        ([CARD], DIRECTML, 8 * GB, "directml", 0),
    ],
)
def test_the_choice_depends_on_the_machine(
    found: list[Adapter], builds: dict[str, str], memory: int, target: str, device: int | None, machine: Machine
) -> None:
    machine(*found, builds=builds, memory=memory)
    choice = chosen()
    assert (choice.variant.target, choice.placement.device, choice.runs) == (target, device, True)
    assert choice.placement.provider == target.split("-")[0]
    assert choice.reason.startswith(f"{target} runs on ")
    for rejected, why in choice.rejected.items():
        assert f"not {rejected}: {why}" in choice.reason


def test_the_context_is_the_longest_that_fits(machine: Machine) -> None:
    machine(CARD, builds=DIRECTML)
    choice = chosen()
    assert choice.variant.memory is not None
    assert (
        choice.variant.memory.at(choice.placement.context)
        <= 15 * GB
        < choice.variant.memory.at(choice.placement.context + 1024)
    )
    assert choice.reason == "directml runs on A Card (needs 13.9 GB for 8,192 tokens of context, 16.1 GB available)"


def test_no_variant_runs(machine: Machine) -> None:
    machine(SMALL_CARD, builds=DIRECTML, memory=8 * GB)
    with pytest.raises(BackendUnavailable, match="no variant of gpt-oss-20b runs here") as raised:
        chosen()
    assert "directml: it needs 13.2 GB on A Small Card" in raised.value.message
    assert raised.value.remedy
    machine(SMALL_CARD, builds=CPU, memory=8 * GB)
    variants = Registry(Path("nowhere"), search=[]).info("gpt-oss-20b:cpu")
    with pytest.raises(ResourceError, match="on the CPU"):
        choose("gpt-oss-20b", variants)
    machine(builds={})
    with pytest.raises(BackendUnavailable, match="no build of onnxruntime"):
        chosen()


def test_requested_targets_and_devices(machine: Machine) -> None:
    machine(CARD, SMALL_CARD, builds=DIRECTML)
    assert chosen(device=1, name="gptoss-nano").placement.device == 1
    assert chosen(device="small", name="gptoss-nano", target="directml").placement.device == 1
    assert chosen(target="cpu-int4").runs
    unfit = chosen(target="cpu")
    assert not unfit.runs
    assert (
        "cpu was requested but does not run here: it requires onnxruntime>=1.32 (1.24.4 is installed)" in unfit.reason
    )
    with pytest.raises(ModelNotFound, match="has no variant for 'webgpu'") as raised:
        chosen(target="webgpu")
    assert raised.value.remedy == "Available variants: cpu, cpu-int4, directml."
    with pytest.raises(BackendUnavailable, match="the CPU is not an adapter"):
        chosen(device=7)
    missing = chosen(target="directml", device=7)
    assert (missing.runs, missing.placement.device) == (False, 7)
    with pytest.raises(NoAdapter):
        adapters.choose_adapter([CARD], 7)


def test_an_unknown_target(machine: Machine) -> None:
    machine(CARD, builds=DIRECTML)
    model = Model(variants={"hexagon-w4": Published(repository="a/b")})
    registry = Registry(Path("nowhere"), search=[], catalog=Catalog(models={"m": model}))
    with pytest.raises(BackendUnavailable, match="cannot check whether hexagon runs here"):
        choose("m", registry.info("m"))
    assert choose("m", registry.info("m"), target="hexagon-w4").placement.provider == "hexagon"


def test_the_catalog_has_the_memory_budgets_of_the_converter(
    packaged: Catalog, nano_checkpoint: Path, nano_artifact: Path, tmp_path: Path
) -> None:
    large = Checkpoint.open(write_checkpoint(tmp_path / "20b", hollow=True, shards=3))
    for name, checkpoint in {"gpt-oss-20b": large, "gptoss-nano": Checkpoint.open(nano_checkpoint)}.items():
        for target in (cpu.TARGET, cpu_int4.TARGET, directml.TARGET):
            size = weights_size(checkpoint, target, resolve(target.presets, "balanced"))
            published = packaged.models[name].variants[target.name]
            assert published.memory == memory_budget(checkpoint.config, target, size)
            assert published.download is not None
            assert 0 < published.download - size < 50e6
            assert published.requires == dict(target.requires)
    manifest = Manifest.read(nano_artifact)
    assert packaged.models["gptoss-nano"].variants["cpu"].memory == manifest.memory


def test_unpublished_models_are_never_requested(packaged: Catalog, tmp_path: Path) -> None:
    registry = Registry(tmp_path, search=[], catalog=packaged)
    for variant in registry.list():
        assert variant.published is not None
        assert not variant.published.published
        with pytest.raises(ModelNotFound, match="has not been published yet") as raised:
            registry.pull(variant.id)
        assert "gptoss convert" in str(raised.value) or "gptoss demo" in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_the_users_catalog_overrides_the_packaged_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = tmp_path / "config" / "catalog.json"
    mine.parent.mkdir()
    variant = {"repository": "team/model", "subfolder": "a/b", "revision": "v1"}
    ours = {
        "gpt-oss-20b": {"aliases": ["twenty"], "variants": {"cpu": variant}},
        "ours": {"variants": {"cpu": variant}},
    }
    mine.write_text("\ufeff" + json.dumps({"models": ours}), encoding="utf-8")
    found = Catalog.load()
    assert list(found.models) == ["gpt-oss-20b", "gptoss-nano", "ours"]
    assert found.models["gpt-oss-20b"].variants["cpu"].published
    assert not found.models["gpt-oss-20b"].variants["directml"].published
    assert found.models["gpt-oss-20b"].description
    assert found.resolve_alias("TWENTY") == "gpt-oss-20b"
    monkeypatch.setenv("GPTOSS_CATALOG", str(tmp_path / "gone.json"))
    with pytest.raises(InvalidRequest, match=r"gone\.json cannot be read"):
        Catalog.load()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"schema_version": 2}',
        '{"model": {}}',
        '{"models": {"../x": {}}}',
        '{"models": {"NUL": {}}}',
        '{"models": {"m": {"variants": {"a:b": {"repository": "a/b"}}}}}',
        '{"models": {"m": {"variants": {"cpu": {"repository": "a/b/c"}}}}}',
        '{"models": {"m": {"variants": {"cpu": {"repository": "../b"}}}}}',
        '{"models": {"m": {"variants": {"cpu": {"repository": "a/b", "subfolder": "../x"}}}}}',
        '{"models": {"m": {"variants": {"cpu": {"repository": "a/b", "token": "x"}}}}}',
        '{"models": ' * 5000,
    ],
)
def test_an_invalid_catalog(text: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InvalidRequest) as raised:
        Catalog.load(path)
    assert raised.value.remedy


def link(artifact: Path, to: Path) -> Path:
    """Creates another folder with an artifact's files, as hard links."""
    to.mkdir(parents=True)
    for path in artifact.iterdir():
        os.link(path, to / path.name)
    return to


def test_converted_artifacts_are_found(nano_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = link(nano_artifact, tmp_path / "artifacts" / "gptoss-nano" / "cpu")
    other = link(nano_artifact, tmp_path / "more" / "mine" / "cpu-int4")
    (tmp_path / "artifacts" / "checkpoints" / "gptoss-nano").mkdir(parents=True)
    (tmp_path / "artifacts" / ".hidden" / "cpu").mkdir(parents=True)
    monkeypatch.setenv("GPTOSS_ARTIFACTS", os.pathsep.join([str(tmp_path / "artifacts"), str(tmp_path / "more")]))
    registry = Registry(tmp_path / "cache")
    assert [(one.id, one.path, one.where) for one in registry.list(here=True)] == [
        ("gptoss-nano:cpu", own, "folder"),
        ("mine:cpu-int4", other, "folder"),
    ]
    assert registry.resolve("gptoss-nano") == registry.resolve("GPTOSS-Nano:cpu") == own
    assert registry.choose("mine").variant.path == other
    with pytest.raises(ModelNotFound, match="gptoss-nano:directml is not on this machine") as raised:
        registry.resolve("gptoss-nano:directml")
    assert "gptoss demo" in str(raised.value)
    with pytest.raises(InvalidRequest, match="not in the cache"):
        registry.remove("gptoss-nano")
    assert own.exists()


def test_a_name_resolves_to_the_variant_that_runs(nano_artifact: Path, tmp_path: Path, machine: Machine) -> None:
    for target in ("cpu", "directml"):
        link(nano_artifact, tmp_path / "gptoss-nano" / target)
    registry = Registry(tmp_path / "cache", search=[tmp_path])
    machine(CARD, builds=DIRECTML)
    assert registry.resolve("gptoss-nano").name == "directml"
    machine(builds=CPU, windows=False)
    assert registry.resolve("gptoss-nano").name == "cpu"
    assert registry.resolve("gptoss-nano:directml").name == "directml"


def test_a_path_always_resolves(nano_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry(tmp_path / "cache", search=[])
    assert registry.resolve(str(nano_artifact)) == nano_artifact.resolve()
    monkeypatch.chdir(nano_artifact.parent)
    assert registry.resolve("cpu") == nano_artifact.resolve()
    assert registry.resolve(".") == nano_artifact.parent.resolve()
    with pytest.raises(ArtifactError, match="does not exist"):
        registry.resolve("./nothing")
    for name in (str(nano_artifact), "cpu", "."):
        with pytest.raises(ModelNotFound):
            registry.resolve(name, paths=False)


def test_a_server_does_not_search_the_working_folder(
    nano_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else may be able to write there; a user who names a model on the command line knows the folder."""
    monkeypatch.delenv("GPTOSS_ARTIFACTS", raising=False)
    for name in ("gptoss-nano", "mine"):
        link(nano_artifact, tmp_path / "artifacts" / name / "cpu")
    link(nano_artifact, tmp_path / "bare")
    monkeypatch.chdir(tmp_path)
    person, server = (Registry(tmp_path / "cache", working_folder=where) for where in (True, False))
    assert person.resolve("mine").samefile(tmp_path / "artifacts" / "mine" / "cpu")
    assert person.resolve("bare").samefile(tmp_path / "bare")
    assert server.list(here=True) == ()
    for name in ("gptoss-nano", "gptoss-nano:cpu", "mine", "bare"):
        with pytest.raises(ModelNotFound) as raised:
            server.resolve(name)
        assert ("--artifacts artifacts" in str(raised.value.remedy)) == (name != "bare")
    assert server.resolve("./bare").samefile(tmp_path / "bare")
    asked = Registry(tmp_path / "cache", search=[Path("artifacts")], working_folder=False)
    assert asked.resolve("mine").samefile(tmp_path / "artifacts" / "mine" / "cpu")
    monkeypatch.setenv("GPTOSS_ARTIFACTS", str(tmp_path / "artifacts"))
    assert Registry(tmp_path / "cache", working_folder=False).resolve("mine").name == "cpu"


@pytest.mark.parametrize("name", ["..", "C:", "NUL", "CON:x", "file:stream", "", ":", "a\0b", "x" * 5000, "\ud800"])
def test_names_without_a_model(name: str, tmp_path: Path) -> None:
    registry = Registry(tmp_path / "cache", search=[tmp_path])
    with pytest.raises(ModelNotFound):
        registry.resolve(name, paths=False)
    with pytest.raises(InvalidRequest):
        registry.remove(name)
    with pytest.raises(InvalidRequest):
        registry.pull(name)


def test_a_damaged_artifact_is_reported(nano_artifact: Path, tmp_path: Path) -> None:
    damaged = link(nano_artifact, tmp_path / "mine" / "cpu")
    (damaged / "manifest.json").unlink()
    (damaged / "manifest.json").write_text("{")
    registry = Registry(tmp_path / "cache", search=[tmp_path])
    [one] = registry.info("mine")
    assert one.problem is not None
    assert registry.list(here=True) == ()
    with pytest.raises(ArtifactError):
        registry.resolve("mine")
    (damaged / "manifest.json").unlink()  # a stock conversion has none
    assert registry.resolve("mine") == damaged
    assert registry.info("mine")[0].memory is None


def test_the_examples_in_the_docs(
    nano_artifact: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GPTOSS_ARTIFACTS", str(nano_artifact.parents[1]))
    page = (Path(__file__).parents[3] / "docs" / "models.md").read_text(encoding="utf-8")
    [example] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    [catalog] = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    exec(compile(example, "models.md", "exec"), {})
    assert f"gptoss-nano:cpu {nano_artifact}" in capsys.readouterr().out
    assert Catalog.model_validate_json(catalog).models["gpt-oss-20b"].aliases == ("twenty",)
