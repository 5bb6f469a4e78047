"""Finds or builds the lab, and runs Windows' Python in it.

Knows where labs are kept and how to start a run; build.py knows what a lab contains.

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

if __name__ == "__main__" and not __package__:  # run as a script: import the same module from its package
    import runpy

    sys.path[0] = str(Path(__file__).parents[1])
    runpy.run_module("lab.lab", run_name="__main__", alter_sys=True)
    raise SystemExit

from . import recipe
from .build import PACKAGES, WINE, WINE_ENVIRONMENT, Build, debian_mirror
from .sandbox import LabUnavailable, Mount, command, environment, namespaces

VARIABLE = "GPTOSS_DML_LAB"
PYTHON = r"Z:\lab\py\python.exe"
RECIPE = "recipe"  # holds the digest; written last, so it marks a complete lab
TAKEN = {"w", "py", "prefix", "windows", "runtime", "display.reg"}
# Without device_id, onnxruntime silently falls back to the CPU. os._exit: DirectML.dll may crash
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
    """A complete lab, in which DirectML has been tested."""

    folder: Path

    @classmethod
    def ensure(cls) -> Lab:
        """Returns the lab of this recipe; builds it if there is none, which takes up to two minutes and 0.7 GB.

        Raises:
            LabUnavailable: this machine cannot host one, or a step of the build failed.
        """
        named = os.environ.get(VARIABLE)
        if named:
            return cls.at(Path(named).absolute())
        return cls.at(platformdirs.user_cache_path("gptoss-windows") / f"dml-lab-{recipe.digest()}")

    @classmethod
    def at(cls, folder: Path) -> Lab:
        """Returns the lab in a folder; builds it if the folder does not exist.

        Raises:
            LabUnavailable: as ``ensure``; or the folder is not a lab of this recipe.
        """
        check_machine()
        folder.parent.mkdir(parents=True, exist_ok=True)
        with hold_lock(folder.with_name(folder.name + ".lock")):
            if not folder.exists():
                cls._build(folder)
            made = folder / RECIPE
            if not made.is_file() or made.read_text(encoding="ascii") != recipe.digest():
                raise LabUnavailable(f"{folder} is not a lab of this recipe: remove it, or name another in {VARIABLE}")
        return cls(folder)

    @classmethod
    def _build(cls, folder: Path) -> None:
        """Builds and tests a lab under another name, then renames it: an interrupted build leaves no lab."""
        check_disk(folder.parent)
        debian_mirror()  # cheap to check, and required
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
        """Tests that DirectML works.

        Raises:
            LabUnavailable: it does not.
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
        """Versions of the packages: the important ones first, then all by name."""
        found: dict[str, str] = json.loads((self.folder / PACKAGES).read_text(encoding="utf-8"))
        return found

    @property
    def wine_version(self) -> str:
        """Wine's version in Debian."""
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
        r"""Runs Windows' Python.

        Args:
            args: arguments of python.exe; paths as seen inside the lab.
            folder: seen as Z:\lab\w, and the working folder; its files remain, all other changes are discarded.
            mounts: folders by name, seen as Z:\lab\NAME, read-only. The checkout's runtime is always there.
            env: environment variables in addition to the lab's.
            timeout: seconds, not counting the wait for another run to end.
            stdin: text for standard input; empty by default.

        Returns:
            Exit code (its lowest 8 bits, as always on Linux), stdout and stderr, with \n line ends.

        Raises:
            subprocess.TimeoutExpired: the run took longer; its processes have been killed.
        """
        for name in mounts:
            if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name) or name in TAKEN:
                raise ValueError(f"{name!r} is not a valid name for a mount")
        inside = [Mount(path, f"/lab/{name}") for name, path in {"runtime": recipe.ROOT / "runtime", **mounts}.items()]
        inside.append(Mount(folder, "/lab/w", writable=True))
        for mount in inside:
            if not mount.source.is_dir():
                raise NotADirectoryError(f"{mount.source}, to be mounted as {mount.target}, is not a folder")
        variables = {"PYTHONUTF8": "1", "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        variables |= {"PYTHONPATH": r"Z:\lab\runtime", **WINE_ENVIRONMENT, **env}
        line = [WINE, PYTHON, *map(str, args)]
        inner = command(self.folder / "root", [line], cwd="/lab/w", mounts=inside, forgotten="/lab/prefix")
        with hold_lock(self.folder / "run.lock"):
            try:
                done = subprocess.run(
                    inner,
                    env=environment(variables),
                    input=(stdin or "").encode(),
                    capture_output=True,
                    timeout=timeout,
                )
            except subprocess.TimeoutExpired as e:
                said = (decode_output(text or b"") for text in (e.stdout, e.stderr))
                raise subprocess.TimeoutExpired(line, timeout, *said) from None
        return subprocess.CompletedProcess(
            line, done.returncode, decode_output(done.stdout), decode_output(done.stderr)
        )


def decode_output(output: bytes) -> str:
    """Decodes output of Windows programs, some of which write UTF-16."""
    return output.replace(b"\0", b"").decode("utf-8", "replace").replace("\r\n", "\n")


@contextlib.contextmanager
def hold_lock(file: Path) -> Iterator[None]:
    """Holds an exclusive lock between processes; it is released if the process dies."""
    import fcntl  # does not exist on Windows, where this module is imported only to report that no lab can run

    with file.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def check_machine() -> None:
    """Checks that a lab can run on this machine.

    Raises:
        LabUnavailable: it cannot.
    """
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise LabUnavailable(f"the lab needs Linux on x86-64, and this is {sys.platform} on {platform.machine()}")
    namespaces()


def check_disk(folder: Path) -> None:
    """Checks that a lab can be built on this machine.

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
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="lab.py", description="DirectML on Linux, under Wine.")
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build", help="build the lab if there is none")
    build.add_argument("dir", nargs="?", type=Path, help=f"the lab's folder; default: ${VARIABLE}, or the cache")
    run = commands.add_parser("run", help="run a script in Windows' Python")
    run.add_argument("--mount", action="append", default=[], metavar="NAME=PATH", help=r"seen as Z:\lab\NAME")
    run.add_argument("--timeout", type=float, default=600, metavar="SECONDS")
    run.add_argument("workdir", type=Path, help=r"seen as Z:\lab\w, and the working folder")
    run.add_argument("args", nargs=argparse.REMAINDER, help="arguments of python.exe")
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
        print(f"timed out after {options.timeout:.0f} s", file=sys.stderr)
        return 124
    print(done.stderr, end="", file=sys.stderr)
    print(done.stdout, end="")
    return done.returncode


if __name__ == "__main__":
    raise SystemExit(main())
