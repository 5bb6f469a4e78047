"""The lab: found or built, and Windows' Python run in it.

Knows where labs are kept and how a run looks from outside; build.py knows what is in one.

    python tests/directml/lab/lab.py build [DIR]
    python tests/directml/lab/lab.py run [--mount NAME=PATH] WORKDIR script.py args…
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import platformdirs

if __name__ == "__main__" and not __package__:  # as a script: the same module, but in its package
    import runpy

    sys.path[0] = str(Path(__file__).parents[1])
    runpy.run_module("lab.lab", run_name="__main__", alter_sys=True)
    raise SystemExit

from . import recipe
from .build import PACKAGES, WINE, WINE_ENVIRONMENT, Build, debian_mirror
from .sandbox import LabUnavailable, Mount, command, environment, namespaces

VARIABLE = "GPTOSS_DML_LAB"
PYTHON = r"Z:\lab\py\python.exe"
RECIPE = "recipe"  # the digest; written last, so that it is the mark of a whole lab
TAKEN = {"w", "py", "prefix", "windows", "runtime", "display.reg"}
# device_id has to be given: without it onnxruntime falls back to the CPU in silence. os._exit: DirectML.dll may crash
# when it is unloaded after everything else.
PROOF = r"""
import os, sys, numpy, onnxruntime, onnxruntime_genai
from onnxruntime.datasets import get_example
options = onnxruntime.SessionOptions()
options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
provider = ("DmlExecutionProvider", {"device_id": 0})
session = onnxruntime.InferenceSession(get_example("mul_1.onnx"), options, providers=[provider])
x = numpy.arange(1, 7, dtype="float32").reshape(3, 2)
assert session.get_providers()[0] == "DmlExecutionProvider", session.get_providers()
assert (session.run(None, {"X": x})[0] == x * x).all()
assert onnxruntime_genai.is_dml_available()
print("proved", sys.platform, flush=True)
os._exit(0)
"""


@dataclass(frozen=True)
class Lab:
    """A folder that was built and has proved that DirectML works in it."""

    folder: Path

    @classmethod
    def ensure(cls) -> Lab:
        """The lab of this recipe, built where there is none: half a minute to a whole one, and 0.7 GB.

        Raises:
            LabUnavailable: this machine cannot host one, or a step of the build failed.
        """
        named = os.environ.get(VARIABLE)
        if named:
            return cls.at(Path(named).absolute())
        return cls.at(platformdirs.user_cache_path("gptoss-windows") / f"dml-lab-{recipe.digest()}")

    @classmethod
    def at(cls, folder: Path) -> Lab:
        """The lab in a certain folder, built if that is not there.

        Raises:
            LabUnavailable: as ``ensure``; or what lies there is no lab.
        """
        check_machine()
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.with_name(folder.name + ".lock")):
            if not folder.exists():
                cls._build(folder)
            made = folder / RECIPE
            if not made.is_file() or made.read_text(encoding="ascii") != recipe.digest():
                raise LabUnavailable(f"{folder} is no lab of this recipe: remove it, or name another in {VARIABLE}")
        return cls(folder)

    @classmethod
    def _build(cls, folder: Path) -> None:
        """Built aside, proved, renamed: what has the name is whole, whatever interrupted an earlier build."""
        check_disk(folder.parent)
        debian_mirror()  # cheap, and without one nothing can be built
        aside = folder.with_name(folder.name + ".building")
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        log = folder.with_name(folder.name + ".log")
        try:
            with log.open("w", encoding="utf-8") as file:
                build = Build(aside, file)
                build()
                build.say("prove that DirectML works")
                cls(aside)._prove()
                (aside / RECIPE).write_text(recipe.digest(), encoding="ascii")
                build.say(f"done: {folder}")
        except LabUnavailable as e:
            shutil.rmtree(aside, ignore_errors=True)
            raise LabUnavailable(f"{e}\n(more in {log})") from e
        aside.rename(folder)

    def _prove(self) -> None:
        """Run something on DirectML.

        Raises:
            LabUnavailable: it did not work.
        """
        scratch = self.folder / "proof"
        scratch.mkdir()
        done = self.run("-c", PROOF, folder=scratch, timeout=120)
        scratch.rmdir()
        if done.returncode or "proved win32" not in done.stdout:
            last = (done.stdout + done.stderr)[-2000:]
            raise LabUnavailable(f"built, but DirectML does not work in it (exit code {done.returncode}):\n{last}")

    @property
    def packages(self) -> dict[str, str]:
        """Versions of what is inside: onnxruntime, Wine and the like first, then everything by name."""
        found: dict[str, str] = json.loads((self.folder / PACKAGES).read_text(encoding="utf-8"))
        return found

    @property
    def wine_version(self) -> str:
        """As Debian numbers it."""
        return self.packages["libwine"]

    def run(
        self,
        *args: str | Path,
        folder: Path,
        mounts: Mapping[str, Path] = {},
        env: Mapping[str, str] = {},
        timeout: float = 600,
        stdin: str | None = None,
    ) -> subprocess.CompletedProcess[str]:
        r"""Run Windows' Python.

        Args:
            args: of python.exe; paths as seen inside.
            folder: Z:\lab\w inside, and the current folder; what is written there stays, all else is forgotten.
            mounts: folders by name, seen as Z:\lab\NAME, read-only. The checkout's runtime is always there.
            env: environment variables beside the lab's own.
            timeout: seconds, not counting those spent waiting for another run to end.
            stdin: text to be read; nothing otherwise.

        Returns:
            Exit code (its lowest 8 bits, as everywhere on Linux), stdout and stderr, with Linux' line ends.

        Raises:
            subprocess.TimeoutExpired: nothing that was started is left.
        """
        for name in mounts:
            if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name) or name in TAKEN:
                raise ValueError(f"{name!r} is no name for a mount")
        inside = [Mount(path, f"/lab/{name}") for name, path in {"runtime": recipe.ROOT / "runtime", **mounts}.items()]
        inside.append(Mount(folder, "/lab/w", writable=True))
        for mount in inside:
            if not mount.source.is_dir():
                raise NotADirectoryError(f"{mount.source}, to be mounted as {mount.target}, is no folder")
        variables = {"PYTHONUTF8": "1", "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        variables |= {"PYTHONPATH": r"Z:\lab\runtime", **WINE_ENVIRONMENT, **env}
        line = [WINE, PYTHON, *map(str, args)]
        inner = command(self.folder / "root", [line], cwd="/lab/w", mounts=inside, forgotten="/lab/prefix")
        with locked(self.folder / "run.lock"):
            try:
                done = subprocess.run(
                    inner,
                    env=environment(variables),
                    input=(stdin or "").encode(),
                    capture_output=True,
                    timeout=timeout,
                )
            except subprocess.TimeoutExpired as e:
                said = (readable(text or b"") for text in (e.stdout, e.stderr))
                raise subprocess.TimeoutExpired(line, timeout, *said) from None
        return subprocess.CompletedProcess(line, done.returncode, readable(done.stdout), readable(done.stderr))


def readable(output: bytes) -> str:
    """Text of Windows programs, some of which write UTF-16."""
    return output.replace(b"\0", b"").decode("utf-8", "replace").replace("\r\n", "\n")


@contextlib.contextmanager
def locked(file: Path) -> Iterator[None]:
    """One at a time, over processes; a process that dies lets go."""
    import fcntl  # not on Windows, where this module is imported to say that it is of no use there

    with file.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def check_machine() -> None:
    """Whether a lab can run here.

    Raises:
        LabUnavailable: it cannot.
    """
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise LabUnavailable(f"the lab needs Linux on x86-64, and this is {sys.platform} on {platform.machine()}")
    namespaces()


def check_disk(folder: Path) -> None:
    """Whether a lab can be built here.

    Raises:
        LabUnavailable: it cannot.
    """
    missing = [tool for tool in ("apt-get", "dpkg-deb") if shutil.which(tool) is None]
    if missing:
        raise LabUnavailable(f"{', '.join(missing)} not found: the lab is built on Debian, from Debian's packages")
    free = shutil.disk_usage(folder).free
    if free < recipe.DISK:
        raise LabUnavailable(f"{folder} has {free / 1e9:.1f} GB left, and building takes {recipe.DISK / 1e9:.0f}")


def main() -> int:
    """By hand."""
    parser = argparse.ArgumentParser(prog="lab.py", description="DirectML on Linux, under Wine.")
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build", help="build it, unless it is there")
    build.add_argument("dir", nargs="?", type=Path, help=f"where; default: ${VARIABLE}, or the cache")
    run = commands.add_parser("run", help="run a script in Windows' Python")
    run.add_argument("--mount", action="append", default=[], metavar="NAME=PATH", help=r"seen as Z:\lab\NAME")
    run.add_argument("--timeout", type=float, default=600, metavar="SECONDS")
    run.add_argument("workdir", type=Path, help=r"seen as Z:\lab\w, and the current folder")
    run.add_argument("args", nargs=argparse.REMAINDER, help="of python.exe")
    options = parser.parse_args()
    try:
        if options.command == "build":
            lab = Lab.at(options.dir.absolute()) if options.dir else Lab.ensure()
            print(lab.folder)
            return 0
        mounts = {name: Path(path) for name, _, path in (text.partition("=") for text in options.mount)}
        faults = {key: value for key, value in os.environ.items() if key in {"GPTOSS_LAB_FAULT", "WINEDEBUG"}}
        done = Lab.ensure().run(
            *options.args, folder=options.workdir, mounts=mounts, env=faults, timeout=options.timeout
        )
    except LabUnavailable as e:
        print(f"lab unavailable: {e}", file=sys.stderr)
        return 3
    except subprocess.TimeoutExpired:
        print(f"not done after {options.timeout:.0f} s", file=sys.stderr)
        return 124
    print(done.stderr, end="", file=sys.stderr)
    print(done.stdout, end="")
    return done.returncode


if __name__ == "__main__":
    raise SystemExit(main())
