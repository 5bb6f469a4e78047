"""Finds the installed builds of onnxruntime and onnxruntime-genai and checks that they work together.

All builds of one package share its import name, so two of them in one environment overwrite each other's files. This
module reads package metadata only and imports none of the packages, so it also works when they are broken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import metadata

from packaging.specifiers import InvalidSpecifier, Specifier
from packaging.version import InvalidVersion, Version

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
# A remedy must not say "--provider cpu": genai cannot run a DirectML artifact's fixed-size KV cache on the CPU.
USE_CPU_ARTIFACT = "use an artifact that was converted for the CPU (gptoss convert --target cpu)"


def find_builds() -> dict[str, str]:
    """Returns the installed version of each build listed above, by distribution name."""
    found = {}
    for name in (*ONNXRUNTIME, *GENAI):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def own_version() -> str | None:
    """Returns the version of gptoss-windows, or None when it runs from a folder without being installed."""
    try:
        return metadata.version("gptoss-windows")
    except metadata.PackageNotFoundError:
        return None


def find_conflicts(found: Mapping[str, str]) -> list[list[str]]:
    """Returns the groups of builds of one package that are installed side by side."""
    families: list[Sequence[str]] = [ONNXRUNTIME, GENAI]
    together = [[name for name in family if name in found] for family in families]
    return [names for names in together if len(names) > 1]


def require_builds(extra: str, found: Mapping[str, str] | None = None) -> None:
    """Checks that exactly one build of onnxruntime and one of onnxruntime-genai is installed.

    Args:
        extra: the extra of this project that the remedy installs, such as "cpu".
        found: the result of :func:`find_builds`; ``None``: call it.

    Raises:
        BackendUnavailable: a build is missing, or two conflict; the remedy lists the commands to run.
    """
    found = find_builds() if found is None else found
    if conflicts := find_conflicts(found):
        names = " and ".join(name for names in conflicts for name in names)
        raise BackendUnavailable(
            f"{names} are installed side by side and overwrite each other's files",
            remedy=_reinstall_commands([name for names in conflicts for name in names], extra),
        )
    for family in (ONNXRUNTIME, GENAI):
        if not any(name in found for name in family):
            raise BackendUnavailable(f"no build of {family[0]} is installed", remedy=INSTALL.format(extra))


def require_directml(found: Mapping[str, str] | None = None) -> None:
    """Checks that this is Windows and that the DirectML builds, and no others, are installed.

    Args:
        found: the result of :func:`find_builds`; ``None``: call it.

    Raises:
        BackendUnavailable: one of these is not the case; the remedy lists the commands to run.
    """
    if not hardware.WINDOWS:
        raise BackendUnavailable("DirectML needs Windows", remedy=f"On this system, {USE_CPU_ARTIFACT}.")
    found = find_builds() if found is None else found
    require_builds("directml", found)
    others = [name for name in (*ONNXRUNTIME, *GENAI) if name in found and not name.endswith("-directml")]
    if others:
        raise BackendUnavailable(
            f"{' and '.join(others)} {'is' if len(others) == 1 else 'are'} installed instead of the build for DirectML",
            remedy=_reinstall_commands(others, "directml"),
        )


def _reinstall_commands(names: Sequence[str], extra: str) -> str:
    """Returns one command per line, because PowerShell 5 has no ``&&``."""
    lines = [f"pip uninstall -y {' '.join(names)}", INSTALL.format(extra)]
    if extra != "cpu":
        lines.append("(The converter needs the CPU build: install it in a separate environment.)")
    return "\n".join(lines)


def find_unmet(requires: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """Returns the requirements of an artifact that the installed packages do not meet.

    Args:
        requires: version specifiers by package, as in a manifest; any build of onnxruntime meets "onnxruntime".
        found: the result of :func:`find_builds`.

    Returns:
        One text per unmet requirement, such as "onnxruntime>=1.32 (1.24.4 is installed)".
    """
    unmet = []
    for package, specifier in requires.items():
        family = next((family for family in (ONNXRUNTIME, GENAI) if package == family[0]), (package,))
        version = next((found[name] for name in family if name in found), None)
        if version is None or not satisfies(version, specifier):
            status = "is not installed" if version is None else f"{version} is installed"
            unmet.append(f"{package}{specifier} ({status})")
    return unmet


def satisfies(version: str, specifier: str) -> bool:
    """Whether a version meets a specifier such as ">=1.24.4,<2".

    Pre-, post-, development and local releases count as the release they belong to: "1.24.4.post1" meets "==1.24.4",
    and a nightly "1.33.0.dev20260901" meets ">=1.33". A clause that PEP 440 does not define is ignored, so that a newer
    manifest does not lock out an older runtime. A version that PEP 440 does not define meets no clause.
    """
    clauses = [clause for text in specifier.split(",") if (clause := _parse_clause(text)) is not None]
    try:
        release = Version(Version(version).base_version)
    except InvalidVersion:
        return not clauses
    return all(clause.contains(release, prereleases=True) for clause in clauses)


def _parse_clause(text: str) -> Specifier | None:
    try:
        return Specifier(text.strip())
    except InvalidSpecifier:
        return None
