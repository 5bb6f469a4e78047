"""The conversion as Olive passes, listed in olive_configs/package.json so that stock ``olive run`` finds them.

    GptOssExport     HfModel → ONNXModel: the graph and its weights for one target
    GptOssArtifact   ONNXModel → ONNXModel: everything else an artifact holds, and a first run of what was made

Knows Olive's interface and nothing of graphs. Between the two, other passes on ONNX models may be put; the manifest
then says what they left. Source: https://microsoft.github.io/Olive/extending-olive/new-pass.html.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from olive.model import HfModelHandler, ONNXModelHandler
from olive.passes import Pass
from olive.passes.pass_config import PassConfigParam

from gptoss_convert import artifact, smoke, targets
from gptoss_convert.checkpoint import Checkpoint
from gptoss_convert.data_files import WrittenFile
from gptoss_convert.errors import CheckpointError, OutputError, WorkflowError
from gptoss_convert.export import MODEL_FILE, export, extents
from gptoss_convert.first_run import FirstRun, Parts, first_run
from gptoss_convert.output import link_or_copy
from gptoss_convert.run import CURRENT, Run
from gptoss_convert.schemes import Quantisation, resolve
from gptoss_convert.targets import Target
from gptoss_runtime.artifact.folder import Artifact, check_contents
from gptoss_runtime.artifact.manifest import FileEntry, TensorGroup
from gptoss_runtime.errors import ArtifactError, GptOssError

_ATTRIBUTES = "gptoss"  # where the first pass describes its export to the second, in Olive's model attributes


@contextmanager
def _reported() -> Iterator[Run]:
    run = CURRENT.get() or Run()
    try:
        yield run
    except GptOssError as error:
        run.error = error
        raise


class GptOssExport(Pass):
    """Builds a target's graph from a gpt-oss checkpoint, straight from safetensors."""

    @classmethod
    def _default_config(cls, accelerator_spec: Any) -> dict[str, PassConfigParam]:
        return {
            "target": PassConfigParam(type_=str, required=True, description=f"One of {', '.join(targets.names())}."),
            "preset": PassConfigParam(
                type_=str, default_value=None, description="Quantisation preset; the target's first by default."
            ),
            "quantisation": PassConfigParam(
                type_=dict, default_value=None, description="Schemes by tensor group, in place of the preset's."
            ),
            "logits": PassConfigParam(
                type_=str, default_value="last", description="'last' position only, or 'all' to measure."
            ),
            "max_file_size": PassConfigParam(
                type_=int, default_value=None, description="Bytes that a file of weights may have; one file by default."
            ),
        }

    def _run_for_config(self, model: HfModelHandler, config: Any, output_model_path: str) -> ONNXModelHandler:
        with _reported() as run:
            target = targets.load(config.target)
            preset = config.preset or target.default_preset
            checkpoint = Checkpoint.open(model.model_path)
            quantisation = resolve(target.presets, preset, config.quantisation)
            folder = _new_folder(output_model_path)
            made = export(
                checkpoint,
                target,
                quantisation,
                folder,
                logits=config.logits,
                settings=run.settings(config.max_file_size),
                kept=run.partial.weights if run.partial else None,
            )
            groups = {
                name: TensorGroup(
                    scheme=report.scheme,
                    tensors=report.tensors,
                    nbytes=report.nbytes,
                    snr_db=report.snr_db and round(report.snr_db, 3),
                    max_error=report.max_error,
                ).model_dump()
                for name, report in made.weights.groups.items()
            }
            exported = {
                "checkpoint": str(checkpoint.path),
                "target": target.name,
                "preset": preset,
                "logits": config.logits,
                "quantisation": quantisation.model_dump(),
                "max_file_size": config.max_file_size,
                "groups": groups,
                "weights": made.weights.files,
                "model": FileEntry.from_file(made.model).model_dump(),
            }
            return ONNXModelHandler(str(folder), MODEL_FILE, model_attributes={_ATTRIBUTES: exported})


class GptOssArtifact(Pass):
    """Completes an exported model to an artifact and runs it once."""

    @classmethod
    def _default_config(cls, accelerator_spec: Any) -> dict[str, PassConfigParam]:
        return {
            "name": PassConfigParam(
                type_=str, default_value=None, description="Of the model; by default the checkpoint's and the target's."
            ),
            "check": PassConfigParam(
                type_=bool, default_value=True, description="Run the model layer by layer before it is published."
            ),
        }

    def _run_for_config(self, model: ONNXModelHandler, config: Any, output_model_path: str) -> ONNXModelHandler:
        with _reported() as run:
            exported = (model.model_attributes or {}).get(_ATTRIBUTES)
            if exported is None:
                raise WorkflowError(
                    "GptOssArtifact has no model of GptOssExport before it",
                    remedy="List GptOssExport first among the passes; see olive_configs/.",
                )
            before, folder = Path(model.model_path).parent, _new_folder(output_model_path)
            for name in (MODEL_FILE, *exported["weights"]):
                link_or_copy(before / name, folder / name)
            checkpoint, target = Checkpoint.open(exported["checkpoint"]), targets.load(exported["target"])
            name = config.name or f"{artifact.source_name(checkpoint.path)[0].split('/')[-1]}-{target.name}"
            groups = {group: TensorGroup.model_validate(report) for group, report in exported["groups"].items()}
            weights = {name: WrittenFile(sha256, tuple(stamp)) for name, (sha256, stamp) in exported["weights"].items()}
            first = _run_first(folder, checkpoint, target, exported, run) if config.check else None
            preset, logits = exported["preset"], exported["logits"]
            description = artifact.Description(name, target, preset, logits, groups, weights, first)
            artifact.complete(folder, checkpoint, description, run.digests)
            _require_loadable(folder)
            others = [str(file) for file in sorted(folder.iterdir()) if not file.name.startswith(MODEL_FILE)]
            return ONNXModelHandler(str(folder), MODEL_FILE, model_attributes={"additional_files": others})


def _run_first(
    folder: Path, checkpoint: Checkpoint, target: Target, exported: dict[str, Any], run: Run
) -> FirstRun | None:
    """Loads what was made and runs it layer by layer; as a whole, and in its memory, where another pass changed it."""
    model = folder / MODEL_FILE
    if FileEntry.from_file(model) != FileEntry.model_validate(exported["model"]):
        smoke.run_once(model)
        return None
    smoke.loads(model)
    quantisation = Quantisation.model_validate(exported["quantisation"])
    where = extents(checkpoint, target, quantisation, exported["max_file_size"])
    return first_run(Parts(checkpoint, target, quantisation, folder, where, run.memory), run.check_progress)


def _require_loadable(folder: Path) -> None:
    """Refuses to publish what the runtime would refuse; only files copied from the checkpoint can be to blame."""
    try:
        Artifact.open(folder)
        check_contents(folder)
    except ArtifactError as error:
        raise CheckpointError(
            f"the artifact would not load: {error.message.replace(str(folder), folder.name)}",
            remedy="Check generation_config.json and the tokenizer's files of the checkpoint.",
        ) from error


def _new_folder(output_model_path: str) -> Path:
    folder = Path(output_model_path)
    if folder.suffix == ".onnx":
        folder = folder.with_suffix("")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: {error.strerror or error}") from error
    return folder
