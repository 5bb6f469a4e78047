"""Which builds of onnxruntime and onnxruntime-genai are installed, and whether they can be used together.

All builds of one of them share its import name: with two installed, what is imported is a mixture of both. Reads the
installed packages' metadata and imports none of them, so it works where they don't.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib import metadata

from gptoss_runtime.errors import BackendUnavailable
from gptoss_runtime.machine import hardware

ONNXRUNTIME = (
    *("onnxruntime", "onnxruntime-directml", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-qnn"),
    *("onnxruntime-webgpu", "onnxruntime-windowsml"),
)
GENAI = (
    *("onnxruntime-genai", "onnxruntime-genai-directml", "onnxruntime-genai-cuda", "onnxruntime-genai-winml"),
    "onnxruntime-genai-directml-ryzenai",
)
INSTALL = 'pip install "gptoss-windows[{}]"'


def installed() -> dict[str, str]:
    """Version by distribution, of the builds above."""
    found = {}
    for name in (*ONNXRUNTIME, *GENAI):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def own_version() -> str | None:
    """Of this project; None where it runs from a folder that was never installed."""
    try:
        return metadata.version("gptoss-windows")
    except metadata.PackageNotFoundError:
        return None


def conflicts(found: Mapping[str, str]) -> list[list[str]]:
    """Builds of one package that are installed beside each other."""
    families: list[Sequence[str]] = [ONNXRUNTIME, GENAI]
    together = [[name for name in family if name in found] for family in families]
    return [names for names in together if len(names) > 1]


def require(extra: str, found: Mapping[str, str] | None = None) -> None:
    """Whether some build of each package is installed, and no two of one.

    Args:
        extra: of this project, that the remedy installs: "cpu".
        found: as from :func:`installed`, which is asked if it is not given.

    Raises:
        BackendUnavailable: they are not; the remedy is what to type.
    """
    found = installed() if found is None else found
    if together := conflicts(found):
        names = " and ".join(name for names in together for name in names)
        raise BackendUnavailable(
            f"{names} are installed side by side and overwrite each other's files",
            remedy=_reinstall([name for names in together for name in names], extra),
        )
    for family in (ONNXRUNTIME, GENAI):
        if not any(name in found for name in family):
            raise BackendUnavailable(f"no build of {family[0]} is installed", remedy=INSTALL.format(extra))


def require_directml(found: Mapping[str, str] | None = None) -> None:
    """Whether the builds for DirectML are installed, and no others beside them.

    Args:
        found: as from :func:`installed`, which is asked if it is not given.

    Raises:
        BackendUnavailable: they are not, or this isn't Windows; the remedy is what to type.
    """
    if not hardware.WINDOWS:
        raise BackendUnavailable("DirectML needs Windows", remedy="Use --provider cpu here.")
    found = installed() if found is None else found
    require("directml", found)
    others = [name for name in (*ONNXRUNTIME, *GENAI) if name in found and not name.endswith("-directml")]
    if others:
        raise BackendUnavailable(
            f"{' and '.join(others)} {'is' if len(others) == 1 else 'are'} installed instead of the build for DirectML",
            remedy=_reinstall(others, "directml"),
        )


def _reinstall(names: Sequence[str], extra: str) -> str:
    """What to type, on lines of their own: PowerShell 5 knows no ``&&``."""
    lines = [f"pip uninstall -y {' '.join(names)}", INSTALL.format(extra)]
    if extra != "cpu":
        lines.append("(The converter wants the CPU build: give it an environment of its own.)")
    return "\n".join(lines)


def unmet(requires: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """What an artifact asks for and is not installed.

    Args:
        requires: version specifiers by package, as a manifest has them; "onnxruntime" is met by any build of it.
        found: as from :func:`installed`.

    Returns:
        Such as "onnxruntime>=1.32 (1.24.4 is installed)".
    """
    missing = []
    for package, specifier in requires.items():
        family = next((family for family in (ONNXRUNTIME, GENAI) if package == family[0]), (package,))
        version = next((found[name] for name in family if name in found), None)
        if version is None or not satisfies(version, specifier):
            there = "is not installed" if version is None else f"{version} is installed"
            missing.append(f"{package}{specifier} ({there})")
    return missing


def satisfies(version: str, specifier: str) -> bool:
    """Whether a version is one of those that a specifier such as ">=1.24.4,<2" allows; what it doesn't know, it allows.

    Compares the numbers only, which is enough for releases.
    """
    have = _numbers(version)
    for clause in specifier.split(","):
        match = re.fullmatch(r"\s*(>=|<=|==|!=|>|<)\s*([\d.]+)\s*", clause)
        if match is None:
            continue
        want = _numbers(match[2])
        length = max(len(have), len(want))
        left, right = (numbers + (0,) * (length - len(numbers)) for numbers in (have, want))
        allowed = {
            ">=": left >= right,
            "<=": left <= right,
            "==": left == right,
            "!=": left != right,
            ">": left > right,
            "<": left < right,
        }
        if not allowed[match[1]]:
            return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    """The release's numbers: (1, 24, 4) of "1.24.4.post1"."""
    release = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part[:9]) for part in release[0].split(".")) if release else ()
