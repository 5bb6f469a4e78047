"""Loads an artifact into onnxruntime-genai so that genai sees only checked data, and not the folder itself.

genai reads a configuration written here, in a private folder, and gets the graph as the bytes that were checked. The
weights stay in place and are checked for changes after loading. Knows what genai reads and when; imports nothing of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from gptoss_runtime.artifact import genai_config
from gptoss_runtime.artifact.folder import CONFIG, Artifact
from gptoss_runtime.errors import ResourceError

_LINK = "weights"


def load_model(genai: ModuleType, artifact: Artifact, configure: Callable[[Any], None]) -> Any:
    """Loads an artifact as a genai Model.

    Args:
        genai: onnxruntime-genai.
        artifact: what to load.
        configure: called with the genai Config before anything is loaded.

    Raises:
        ArtifactError: the folder changed since it was checked; the loaded model is discarded.
        ResourceError: the configuration cannot be written.
        Exception: what genai raises.
    """
    weights = (artifact.path / artifact.graph.name).parent
    relative_paths = hasattr(genai.Config, "from_package_ep")  # newer versions resolve paths against their config
    with _private_folder() as folder:
        weights_path = _relative_path(folder, weights) if relative_paths else str(weights)
        config_json = genai_config.compose(artifact.config, weights_path)
        text = json.dumps(config_json, ensure_ascii=False)  # genai does not parse \\u escapes
        _write_text(folder / CONFIG, text)
        config = genai.Config(str(folder))
        configure(config)
        graph = artifact.graph_bytes()
        config.add_model_data(genai_config.GRAPH, graph)
        with contextlib.nullcontext() if relative_paths else _restored_working_directory():
            model = genai.Model(config)
    artifact.require_unchanged()
    return model


@contextlib.contextmanager
def _private_folder() -> Iterator[Path]:
    """A temporary folder that only this user can read; removed file by file, so that links are not followed."""
    try:
        folder = Path(tempfile.mkdtemp(prefix="gptoss-")).resolve()
    except OSError as error:
        raise ResourceError(
            f"a temporary folder cannot be created: {error.strerror or error}",
            remedy="Free some disk space, or set TMPDIR (on Windows: TEMP) to another folder.",
        ) from error
    try:
        yield folder
    finally:
        for remove, name in ((Path.unlink, _LINK), (Path.rmdir, _LINK), (Path.unlink, CONFIG), (Path.rmdir, "")):
            with contextlib.suppress(OSError):
                remove(folder / name)


def _write_text(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except (OSError, UnicodeEncodeError) as error:
        raise ResourceError(f"{path} cannot be written: {error}", remedy="Free some disk space.") from error


def _relative_path(folder: Path, weights: Path) -> str:
    """The path from ``folder`` to ``weights``. On Windows, if they are on different drives, that of a link to them."""
    try:
        return os.path.relpath(weights, folder)
    except ValueError:
        link = folder / _LINK
    try:
        link.symlink_to(weights, target_is_directory=True)
    except OSError as error:
        if not _create_junction(link, weights):
            raise ResourceError(
                f"onnxruntime-genai cannot reach {weights} from {folder}: {error.strerror or error}",
                remedy="Set TEMP to a folder on the artifact's drive, or copy the artifact to a drive of this machine.",
            ) from error
    return _LINK


def _create_junction(link: Path, weights: Path) -> bool:
    """Creates a junction, a Windows link that needs no privilege but reaches only local drives; returns success."""
    if sys.platform == "win32":
        import _winapi

        with contextlib.suppress(OSError):
            _winapi.CreateJunction(str(weights), str(link))
            return True
    return False


@contextlib.contextmanager
def _restored_working_directory() -> Iterator[None]:
    """Restores the working directory: genai 0.13.1 changes it while loading and fails to return to a name like Zoë."""
    before = os.getcwd()  # noqa: PTH109
    try:
        yield
    finally:
        os.chdir(before)
