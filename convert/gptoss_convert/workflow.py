"""Runs a target's Olive workflow from code, with typed errors, progress and an output that appears as a whole.

Knows olive_configs/ and Olive's engine; nothing of graphs. The artifact is byte for byte that of ``olive run`` with the
same config, without the copies and reports that Olive leaves in its output folder.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

from gptoss_convert import output, partial, provenance, targets
from gptoss_convert.artifact import require_tokenizer, versions
from gptoss_convert.checkpoint import Checkpoint
from gptoss_convert.errors import MemoryLimitTooLow, WorkflowError
from gptoss_convert.provenance import SourceDigests
from gptoss_convert.resources import locate_resource
from gptoss_convert.run import CURRENT, Run
from gptoss_convert.schemes import resolve
from gptoss_convert.writing import Progress
from gptoss_runtime.artifact.manifest import Manifest

PACKAGE_CONFIG = "package.json"
_PASS_KEYS = {
    "gptossexport": {"target", "preset", "quantisation", "logits", "max_file_size"},
    "gptossartifact": {"name", "check"},
}
_OLIVE = 400 << 20  # bytes that Olive and onnxruntime take once they are imported
_OLIVE_KEYS = {"type", "host", "evaluator", "disable_search"}  # settings of any pass


@dataclass(frozen=True)
class Options:
    """The settings of a workflow that a caller may change.

    Attributes:
        preset: quantisation preset; None: the config's.
        quantisation: schemes by tensor group, in place of the preset's.
        name: of the model; None: the checkpoint's and the target's.
        logits: "last" or "all"; None: the config's.
        overwrite: replace an artifact at the output path, once the new one is complete.
        resume: continue an interrupted run of the same conversion, if there is one.
        max_memory: most bytes that the process may take; ``None``: room for two tensors at a time, some 3 GB.
        max_file_size: most bytes of a file of weights; ``None``: the config's, or one file.
    """

    preset: str | None = None
    quantisation: Mapping[str, Any] | None = None
    name: str | None = None
    logits: str | None = None
    overwrite: bool = False
    resume: bool = False
    max_memory: int | None = None
    max_file_size: int | None = None


def config_dir() -> Path:
    """Folder of the Olive configs: olive_configs/ of a checkout, else the copy inside the package."""
    return locate_resource("olive_configs", "olive_configs")


def convert(
    checkpoint: str | Path,
    out: str | Path,
    *,
    target: str = "cpu",
    options: Options | None = None,
    progress: Progress | None = None,
    check_progress: Progress | None = None,
) -> Manifest:
    """Converts a checkpoint to an artifact folder.

    Args:
        checkpoint: folder in the Hugging Face layout.
        out: folder of the artifact; its parents are created.
        target: one of ``targets.names()``, or the path of an Olive config that uses our passes.
        options: changes to the workflow.
        progress: called with (bytes of weights written, bytes in all).
        check_progress: called in the first run with (parts done, parts in all).

    Returns:
        The artifact's manifest.

    Raises:
        CheckpointError: the checkpoint is damaged, incomplete or of another model.
        WorkflowError: the target, the config or an option is wrong, or Olive failed.
        RangeError: a layer's activations exceed the target's float type.
        OutputExists: ``out`` exists and overwriting was not asked for.
        OutputError: the output cannot be written, or the disk is too small.
    """
    options, out = options or Options(), Path(out)
    workflow = load(target)
    _apply_options(workflow, options)
    opened = Checkpoint.open(checkpoint)  # before Olive starts: it fails sooner, and with our own message
    require_tokenizer(opened.path)
    output.require_free(out, overwrite=options.overwrite, marker="manifest.json")
    workflow["input_model"] = {"type": "HfModel", "model_path": str(opened.path.resolve())}
    with partial.open_partial(out, resume=options.resume) as place:
        workflow["cache_dir"], workflow["output_dir"] = str(place.scratch / "cache"), str(place.scratch / "out")
        digests = SourceDigests(opened)
        run = Run(
            progress,
            check_progress,
            _memory_for_weights(options.max_memory),
            place,
            _request_digest(opened, workflow),
            digests,
        )
        try:
            made = _run(workflow, run)
        finally:
            digests.stop()
        manifest = Manifest.read(made)
        output.publish(made.parent if made.is_file() else made, out)
    return manifest


def _memory_for_weights(max_memory: int | None) -> int | None:
    """The part of the allowed memory that is left for weights, in bytes."""
    if max_memory is None:
        return None
    taken = int(psutil.Process().memory_info().rss) + _OLIVE
    if max_memory <= taken:
        raise MemoryLimitTooLow(
            f"{max_memory / 1e9:.1f} GB are allowed, and {taken / 1e9:.1f} GB are taken before the first weight",
            remedy="Allow 2 GB at least (--max-memory 2GB).",
        )
    return max_memory - taken


def _request_digest(checkpoint: Checkpoint, workflow: Mapping[str, Any]) -> str:
    """Digest of everything that the weights depend on; a conversion is resumed only by one with the same digest."""
    asked = {
        "files": provenance.read_stamps(checkpoint),
        "config": (checkpoint.path / "config.json").read_text("utf-8"),
        "export": _pass(workflow, "GptOssExport"),
        "tools": versions(),
    }
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def load(target: str) -> dict[str, Any]:
    """Reads a workflow's JSON.

    Args:
        target: a target's name, or the path of a config.

    Raises:
        WorkflowError: there is no such target or file, or it is not JSON with our passes.
    """
    file = Path(target) if target.endswith(".json") else config_dir() / f"{target}.json"
    if not file.is_file():
        known = "; ".join(f"{name} ({targets.load(name).summary})" for name in targets.names())
        raise WorkflowError(f"no target {target!r}", remedy=f"Targets: {known}. Or give the path of an Olive config.")
    try:
        workflow: dict[str, Any] = json.loads(file.read_text("utf-8"))
        _check(workflow)
    except (OSError, ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
        raise WorkflowError(
            f"{file}: not an Olive workflow with our passes ({error!r})",
            remedy="Start from a file in olive_configs/; see docs/conversion.md.",
        ) from error
    return workflow


def _check(workflow: Mapping[str, Any]) -> None:
    """Checks what is read from the JSON before Olive gets it; Olive checks the rest.

    Raises:
        LookupError, TypeError: a pass or a setting is missing, unknown or of another type.
    """
    artifact = _pass(workflow, "GptOssArtifact")
    export = _pass(workflow, "GptOssExport")
    for step in (export, artifact):
        unknown = set(step) - _PASS_KEYS[step["type"].lower()] - _OLIVE_KEYS
        if unknown:  # Olive would ignore it silently
            raise LookupError(f"{step['type']} has no setting {', '.join(sorted(unknown))}")
    for name, kind in (("target", str), ("preset", str | None), ("quantisation", dict | None), ("logits", str | None)):
        if not isinstance(export.get(name), kind):
            raise TypeError(f"{name} is {export.get(name)!r}")


def _pass(workflow: Mapping[str, Any], name: str) -> dict[str, Any]:
    for step in workflow["passes"].values():
        if step["type"].lower() == name.lower():
            found: dict[str, Any] = step
            return found
    raise LookupError(f"no {name} among the passes")


def _apply_options(workflow: dict[str, Any], options: Options) -> None:
    """Writes the options into the config, and checks what can be checked without Olive."""
    export = _pass(workflow, "GptOssExport")
    for key in ("preset", "quantisation", "logits", "max_file_size"):
        value = getattr(options, key)
        if value is not None:
            export[key] = value
    target = targets.load(export["target"])
    chosen = resolve(target.presets, export.get("preset") or target.default_preset, export.get("quantisation"))
    target.compose(chosen, export.get("logits", "last"))
    if options.name is not None:
        _pass(workflow, "GptOssArtifact")["name"] = options.name


def _run(workflow: dict[str, Any], run: Run) -> Path:
    """Runs the workflow and returns the folder of the model it made."""
    from olive.engine.output import WorkflowOutput
    from olive.package_config import OlivePackageConfig
    from olive.systems.accelerator_creator import create_accelerator
    from olive.workflows.run.config import RunConfig

    token, reports = None, Path(workflow["output_dir"])
    quiet = {logging.getLogger(name): logging.getLogger(name).level for name in ("olive", "transformers")}
    try:
        token = CURRENT.set(run)
        for logger in quiet:  # our own exceptions report a failed pass or a wrong config
            logger.setLevel(logging.CRITICAL)
        config = RunConfig.parse_file_or_obj(deepcopy(workflow))  # it changes its argument
        engine = config.engine.create_engine(
            OlivePackageConfig.parse_file_or_obj(config_dir() / PACKAGE_CONFIG), config.workflow_id
        )
        accelerator = create_accelerator(engine.target_config, skip_supported_eps_check=True, is_ep_required=False)
        engine.set_input_passes_configs(config.passes)
        with _keep_settings(config.passes):
            engine.initialize()
        reports.mkdir()
        with engine._create_system():
            engine.run_accelerator(_with_identifier(config.input_model, run.request), reports, False, accelerator)
        best = WorkflowOutput(accelerator, engine.footprint).get_best_candidate()
    except Exception as error:
        if run.error is not None:
            raise run.error from error
        raise WorkflowError(f"Olive failed: {error}", remedy="Check the config; see docs/conversion.md.") from error
    finally:
        for logger, level in quiet.items():
            logger.setLevel(level)
        if token is not None:
            CURRENT.reset(token)
    if run.error is not None:  # Olive logs what passes raise, and goes on
        raise run.error
    if best is None:
        raise WorkflowError("Olive produced no model", remedy="Run the config with stock `olive run` to see its log.")
    return Path(best.model_config["model_path"])


@contextmanager
def _keep_settings(passes: Mapping[str, Any]) -> Iterator[None]:
    """Keeps our passes' settings: Olive makes paths of those that are also names of files in the working directory."""
    ours = [step for steps in passes.values() for step in steps if step.type.lower() in _PASS_KEYS]
    settings = [deepcopy(step.config) for step in ours]
    yield
    for step, setting in zip(ours, settings, strict=True):
        step.config = setting


def _with_identifier(model: Any, request: str) -> Any:
    """Olive's input model, identified by the request's digest; otherwise Olive hashes the whole checkpoint first."""

    class Identified(type(model)):  # type: ignore[misc]
        def get_model_identifier(self) -> str:
            return request

    return Identified.model_validate(model.model_dump())
