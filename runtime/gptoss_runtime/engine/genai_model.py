"""Has onnxruntime-genai load an artifact without reading the folder by itself: it gets what was checked.

The configuration is one that is written here, in a private folder; the graph is given as the bytes that were checked;
the weights stay where they are, and are compared after loading. Knows what genai reads when; imports nothing of it.
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
    """A genai Model of an artifact.

    Args:
        genai: onnxruntime-genai.
        artifact: which.
        configure: called with the genai Config, before anything is loaded.

    Raises:
        ArtifactError: the folder changed since it was checked; nothing that was loaded is used.
        ResourceError: there is no place for the configuration.
        Exception: what genai raises.
    """
    weights = (artifact.path / artifact.graph.name).parent
    joins = hasattr(genai.Config, "from_package_ep")  # such a genai takes paths as relative to its configuration
    with _private_folder() as folder:
        named = _from(folder, weights) if joins else str(weights)
        text = json.dumps(genai_config.compose(artifact.config, named), ensure_ascii=False)  # genai reads no \\u
        _write(folder / CONFIG, text)
        config = genai.Config(str(folder))
        configure(config)
        graph = artifact.graph_bytes()
        config.add_model_data(genai_config.GRAPH, graph)
        with contextlib.nullcontext() if joins else _same_working_folder():
            model = genai.Model(config)
    artifact.require_unchanged()
    return model


@contextlib.contextmanager
def _private_folder() -> Iterator[Path]:
    """A folder of this user's alone. Removed file by file: nothing that a link leads to is touched."""
    try:
        folder = Path(tempfile.mkdtemp(prefix="gptoss-")).resolve()
    except OSError as error:
        raise ResourceError(
            f"no temporary folder: {error.strerror or error}", remedy="Free some disk space, or set TMPDIR (TEMP)."
        ) from error
    try:
        yield folder
    finally:
        for remove, name in ((Path.unlink, _LINK), (Path.rmdir, _LINK), (Path.unlink, CONFIG), (Path.rmdir, "")):
            with contextlib.suppress(OSError):
                remove(folder / name)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except (OSError, UnicodeEncodeError) as error:
        raise ResourceError(f"{path} cannot be written: {error}", remedy="Free some disk space.") from error


def _from(folder: Path, weights: Path) -> str:
    """The weights' folder as seen from another one; on Windows it may be on another drive, and is then linked to."""
    try:
        return os.path.relpath(weights, folder)
    except ValueError:
        link = folder / _LINK
    try:
        link.symlink_to(weights, target_is_directory=True)
    except OSError as error:
        if not _is_joined(link, weights):
            raise ResourceError(
                f"onnxruntime-genai cannot reach {weights} from {folder}: {error.strerror or error}",
                remedy="Set TEMP to a folder on the artifact's drive, or copy the artifact to a drive of this machine.",
            ) from error
    return _LINK


def _is_joined(link: Path, weights: Path) -> bool:
    """Makes a junction: Windows' links that need no privilege, but lead to this machine's drives only."""
    if sys.platform == "win32":
        import _winapi

        with contextlib.suppress(OSError):
            _winapi.CreateJunction(str(weights), str(link))
            return True
    return False


@contextlib.contextmanager
def _same_working_folder() -> Iterator[None]:
    """genai 0.13.1 works in the configuration's folder while it loads, and finds back to none with a name like Zoë."""
    before = os.getcwd()  # noqa: PTH109
    try:
        yield
    finally:
        os.chdir(before)
