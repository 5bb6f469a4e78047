"""Which builds of onnxruntime and onnxruntime-genai are installed, and whether they can be used together.

All builds of one of them share its import name: with two installed, what is imported is a mixture of both. Reads the
installed packages' metadata and imports none of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import metadata

from gptoss_runtime.errors import BackendUnavailable

ONNXRUNTIME = ("onnxruntime", "onnxruntime-directml", "onnxruntime-gpu", "onnxruntime-winml", "onnxruntime-openvino")
GENAI = (
    *("onnxruntime-genai", "onnxruntime-genai-directml", "onnxruntime-genai-cuda"),
    *("onnxruntime-genai-winml", "onnxruntime-genai-webgpu"),
)
_INSTALL = 'pip install "gptoss-windows[directml]"'


def installed() -> dict[str, str]:
    """Version by distribution, of the builds above."""
    found = {}
    for name in (*ONNXRUNTIME, *GENAI):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def conflicts(found: Mapping[str, str]) -> list[list[str]]:
    """Builds of one package that are installed beside each other."""
    families: list[Sequence[str]] = [ONNXRUNTIME, GENAI]
    together = [[name for name in family if name in found] for family in families]
    return [names for names in together if len(names) > 1]


def require_directml(found: Mapping[str, str] | None = None) -> None:
    """Whether the builds for DirectML are installed, and no others beside them.

    Args:
        found: as from :func:`installed`, which is asked if it is not given.

    Raises:
        BackendUnavailable: they are not; the remedy is what to type.
    """
    found = installed() if found is None else found
    for names in conflicts(found):
        raise BackendUnavailable(
            f"{' and '.join(names)} are installed side by side and overwrite each other's files",
            remedy=f"pip uninstall -y {' '.join(names)} && {_INSTALL}",
        )
    for family, wanted in ((ONNXRUNTIME, "onnxruntime-directml"), (GENAI, "onnxruntime-genai-directml")):
        if wanted in found:
            continue
        other = next((name for name in family if name in found), None)
        if other is None:
            raise BackendUnavailable(f"{wanted} is not installed", remedy=_INSTALL)
        raise BackendUnavailable(
            f"{other} is installed, which has no DirectML", remedy=f"pip uninstall -y {other} && {_INSTALL}"
        )
