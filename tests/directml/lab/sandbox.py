"""Running a program in a folder as its root, in mount and process namespaces of its own.

Knows Linux, and nothing of Wine. Everything that the program starts ends with it, and so do its mounts.
"""

from __future__ import annotations

import functools
import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


class LabUnavailable(Exception):  # noqa: N818 - says what is wrong, as the project's other errors
    """This machine cannot host the lab; the message says why and what would help."""


@dataclass(frozen=True)
class Mount:
    """A folder of this machine, seen inside."""

    source: Path
    target: str
    writable: bool = False


@functools.cache
def namespaces() -> tuple[str, ...]:
    """The command that begins new namespaces here: root's, or an ordinary user's where the kernel grants them.

    Raises:
        LabUnavailable: neither works.
    """
    missing = [tool for tool in ("unshare", "setpriv", "mount", "sh") if shutil.which(tool) is None]
    if missing:
        raise LabUnavailable(f"{', '.join(missing)} not found: install util-linux")
    base = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private")
    says = ""
    for begin in (base, (*base, "--map-root-user")):
        # A folder is mounted, too: in some containers namespaces are allowed and mounts are not.
        done = subprocess.run([*begin, "mount", "-t", "tmpfs", "tmpfs", "/tmp"], capture_output=True, text=True)
        if done.returncode == 0:
            # unshare dies with us, and with it everything inside: also when pytest is killed
            return ("setpriv", "--pdeathsig", "KILL", *begin)
        says = says or done.stderr.strip()
    raise LabUnavailable(f"no mount and process namespaces ({says}): be root, or in a container started as privileged")


def command(
    root: Path,
    lines: Sequence[Sequence[str]],
    *,
    cwd: str = "/",
    mounts: Sequence[Mount] = (),
    forgotten: str | None = None,
) -> list[str]:
    """What runs ``lines`` one after another under ``root``; the exit code is the first line's.

    What they write under the folder ``forgotten`` is gone afterwards.
    """
    quoted = shlex.join
    script = [
        "set -e",
        quoted(["mount", "-t", "proc", "proc", f"{root}/proc"]),
        quoted(["mount", "--rbind", "/dev", f"{root}/dev"]),
        quoted(["mount", "--rbind", "/sys", f"{root}/sys"]),
        quoted(["mount", "-t", "tmpfs", "tmpfs", f"{root}/tmp"]),
    ]
    for mount in mounts:
        target = f"{root}{mount.target}"
        Path(target).mkdir(parents=True, exist_ok=True)
        script.append(quoted(["mount", "--bind", str(mount.source.resolve()), target]))
        if not mount.writable:
            script.append(quoted(["mount", "-o", "remount,bind,ro", target]))
    if forgotten:
        script.append(quoted(["cp", "-a", f"{root}{forgotten}", f"{root}/tmp/.forgotten"]))
        script.append(quoted(["mount", "--bind", f"{root}/tmp/.forgotten", f"{root}{forgotten}"]))
    enter = ["unshare", f"--root={root}", f"--wd={cwd}"]
    script.append("set +e")
    # The shell stays: as process 1 it is no program's child and ignores what would kill one.
    script += [quoted([*enter, *line]) + ("; rc=$?" if n == 0 else "") for n, line in enumerate(lines)]
    return [*namespaces(), "sh", "-c", "\n".join([*script, "exit $rc"])]


def environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Only what is given, and where the tools above are: nothing of this machine's leaks in."""
    return {"PATH": f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin:/usr/bin:/bin", "LANG": "C.UTF-8", **extra}
