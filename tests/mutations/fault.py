"""A fault in the packages: what it breaks, how it is planted, and which tests must fail."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from importlib import util
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = {"gptoss_convert": Path("convert"), "gptoss_runtime": Path("runtime")}
# Folders that the packages need from the root of a checkout.
SHIPPED = (Path("olive_configs"), Path("artifacts", "nano"))


@dataclass(frozen=True)
class Edit:
    """Text of a module that is replaced.

    Attributes:
        module: the file, from its package's folder on, such as ``gptoss_convert/mxfp4.py``.
        old: what is replaced; it occurs once in the file.
        new: what it is replaced by.
    """

    module: str
    old: str
    new: str

    @property
    def file(self) -> Path:
        """The module's file, from the checkout's root."""
        return PACKAGES[Path(self.module).parts[0]] / self.module

    def apply(self, root: Path) -> None:
        """Replaces the text in the copy of the packages under ``root``.

        Raises:
            ValueError: the text does not occur exactly once: the code has changed, so the fault must be updated.
        """
        file = root / self.file
        text = file.read_text("utf-8")
        if text.count(self.old) != 1:
            raise ValueError(f"{self.file}: {text.count(self.old)} times, not once: {self.old!r}")
        file.write_text(text.replace(self.old, self.new), "utf-8")
        Path(util.cache_from_source(str(file))).unlink(missing_ok=True)  # its time stamp may be the new file's


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        name: the fault's name; the test's id.
        breaks: what it breaks, in a line.
        edits: how it is planted.
        caught_by: pytest node ids of tests that fail with it and pass without; the quickest that do.
    """

    name: str
    breaks: str
    edits: tuple[Edit, ...]
    caught_by: tuple[str, ...]


def copy_packages(root: Path) -> Path:
    """Copies the packages, their compiled modules, and the folders that they need from a checkout."""
    for package, parent in PACKAGES.items():
        shutil.copytree(ROOT / parent / package, root / parent / package)
    for folder in SHIPPED:
        (root / folder).mkdir(parents=True)
        for file in (ROOT / folder).iterdir():
            if file.is_file():  # folders are outputs of conversions
                shutil.copyfile(file, root / folder / file.name)
    return root
