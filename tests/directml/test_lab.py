"""The lab runs the real DirectML, and reports why where it cannot run."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from .lab import build, recipe, sandbox
from .lab import lab as lab_module
from .lab.lab import Lab
from .lab.sandbox import LabUnavailable

RUN_MODEL = """
import os, sys, numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
session = onnxruntime.InferenceSession("model.onnx", options, providers=[("DmlExecutionProvider", {"device_id": 0})])
for n in range(int(sys.argv[1])):
    numpy.save("c.npy", session.run(None, {"a": numpy.load("a.npy"), "b": numpy.load("b.npy")})[0])
print("done", flush=True)
os._exit(0)
"""


def matmul(folder: Path) -> np.ndarray:
    """Writes a model, its inputs and the script above; returns the expected product."""
    rng = np.random.default_rng(1)
    a, b = (rng.standard_normal(shape, dtype=np.float32) for shape in ((4, 8), (8, 3)))
    shapes = {"a": a.shape, "b": b.shape, "c": (4, 3)}
    infos = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()}
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["a", "b"], ["c"])], "g", [infos["a"], infos["b"]], [infos["c"]]
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), folder / "model.onnx"
    )
    np.save(folder / "a.npy", a)
    np.save(folder / "b.npy", b)
    (folder / "run.py").write_text(RUN_MODEL, encoding="utf-8")
    return a @ b


class TestDirectML:
    def test_a_product_on_directml(self, lab: Lab, tmp_path: Path) -> None:
        expected = matmul(tmp_path)
        done = lab.run("run.py", "1", folder=tmp_path)
        assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
        np.testing.assert_allclose(np.load(tmp_path / "c.npy"), expected, rtol=1e-5, atol=1e-6)

    def test_these_are_the_windows_builds(self, lab: Lab, tmp_path: Path) -> None:
        script = (
            "import sys, onnxruntime as o, onnxruntime_genai as g, os, pathlib;"
            "here = pathlib.Path(o.__file__).parent / 'capi' / 'DirectML.dll';"
            "print(sys.platform, o.__version__, o.get_available_providers()[0], g.is_dml_available(), here.is_file());"
            "sys.stdout.flush(); os._exit(0)"
        )
        done = lab.run("-c", script, folder=tmp_path)
        version = recipe.WHEELS["onnxruntime-directml"]
        assert done.stdout == f"win32 {version} DmlExecutionProvider True True\n", done.stderr

    def test_the_runtimes_command_line_works(self, lab: Lab, tmp_path: Path) -> None:
        done = lab.run("-m", "gptoss_runtime.cli.main", "--help", folder=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "generate" in done.stdout

    def test_its_versions_are_known(self, lab: Lab) -> None:
        assert recipe.WHEELS.items() <= lab.packages.items()
        assert lab.wine_version.startswith("10.")


class TestRunning:
    def test_folders_arguments_streams_and_exit_codes(self, lab: Lab, tmp_path: Path) -> None:
        work, data = tmp_path / "w", tmp_path / "d"
        work.mkdir()
        data.mkdir()
        (data / "in.txt").write_text("in", encoding="utf-8")
        (work / "s.py").write_text(
            "import os, sys\n"
            "print(os.getcwd(), sys.argv[1:], os.environ['FLAVOUR'], sys.stdin.read())\n"
            "print('wrong: ä', file=sys.stderr)\n"
            "open('out.txt', 'w').write(open(r'Z:\\lab\\data\\in.txt').read())\n"
            "try: open(r'Z:\\lab\\data\\out.txt', 'w')\n"
            "except OSError: sys.exit(7)\n",
            encoding="utf-8",
        )
        arguments = ("two words", 'a "quoted" one', "ü")
        done = lab.run("s.py", *arguments, folder=work, mounts={"data": data}, env={"FLAVOUR": "sweet"}, stdin="text")
        assert done.stdout == f"Z:\\lab\\w {list(arguments)} sweet text\n"
        assert (done.stderr, done.returncode) == ("wrong: ä\n", 7)
        assert (work / "out.txt").read_text(encoding="utf-8") == "in"

    def test_files_written_elsewhere_are_discarded(self, lab: Lab, tmp_path: Path) -> None:
        script = "import pathlib as p; left = [p.Path.home() / 'x', p.Path('C:/x'), p.Path('Z:/tmp/x')];"
        script += "print([f.exists() for f in left]); [f.touch() for f in left]"
        assert [lab.run("-c", script, folder=tmp_path).stdout for _ in range(2)] == ["[False, False, False]\n"] * 2

    def test_a_timeout_leaves_nothing_behind(self, lab: Lab, tmp_path: Path) -> None:
        script = (
            "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(99)']);"
        )
        script += "print('so far'); open('started', 'w').close(); time.sleep(99)"
        with pytest.raises(subprocess.TimeoutExpired, match="timed out after 6 seconds") as raised:
            lab.run("-c", script, folder=tmp_path, timeout=6)
        assert (tmp_path / "started").exists()
        assert raised.value.stdout == "so far\n"
        wait_for(lambda: not processes_that_see(tmp_path))
        assert str(lab.folder) not in Path("/proc/mounts").read_text(encoding="utf-8")

    def test_a_run_ends_with_its_parent(self, lab: Lab, tmp_path: Path) -> None:
        command = [sys.executable, lab_module.__file__, "run", tmp_path, "-c"]
        script = "open('started', 'w').close(); import time; time.sleep(99)"
        with subprocess.Popen([*command, script], env={**os.environ, lab_module.VARIABLE: str(lab.folder)}) as starter:
            wait_for((tmp_path / "started").exists)
            assert processes_that_see(tmp_path)
            starter.send_signal(signal.SIGKILL)
        wait_for(lambda: not processes_that_see(tmp_path))

    @pytest.mark.parametrize("name", ["w", "py", "../x", "", "a/b"])
    def test_mounts_that_would_hide_the_lab(self, name: str, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="not a valid name for a mount"):
            Lab(tmp_path).run("-V", folder=tmp_path, mounts={name: tmp_path})

    def test_a_mount_has_to_be_a_folder(self, tmp_path: Path) -> None:
        with pytest.raises(NotADirectoryError, match="to be mounted as /lab/data"):
            Lab(tmp_path).run("-V", folder=tmp_path, mounts={"data": tmp_path / "none"})


def wait_for(condition: object, seconds: float = 20) -> None:
    """Waits until a condition holds."""
    assert callable(condition)
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.05)


def processes_that_see(folder: Path) -> list[str]:
    """Ids of processes that have a folder mounted: those of one run."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"{folder} " in (process / "mountinfo").read_text(encoding="utf-8"):
                found.append(process.name)
        except OSError:  # ended meanwhile
            continue
    return found


class TestFaults:
    """The faults that d3d12.c can inject; README.md lists what they simulate."""

    def run(self, lab: Lab, folder: Path, fault: str, times: int = 1) -> subprocess.CompletedProcess[str]:
        matmul(folder)
        return lab.run("run.py", str(times), folder=folder, env={"GPTOSS_LAB_FAULT": fault}, timeout=60)

    @pytest.mark.parametrize(
        ("fault", "code"),
        [
            ("nodevice", "887A0004"),
            ("feature-level:a100", "887A0004"),
            ("removed:0", "887A0005"),
            ("removed:3", "887A0005"),
            ("memory:0", "8007000E"),
            ("removed:/lab/w/c.npy", "887A0005"),  # the file is written by the first run
        ],
    )
    def test_a_fault_has_windows_error_code(self, lab: Lab, tmp_path: Path, fault: str, code: str) -> None:
        done = self.run(lab, tmp_path, fault, times=5)
        assert done.returncode == 1
        assert code in done.stderr

    def test_limits_that_are_not_reached_change_nothing(self, lab: Lab, tmp_path: Path) -> None:
        for fault in ("removed:1000", "memory:4096", "feature-level:b000"):
            done = self.run(lab, tmp_path, fault)
            assert done.stdout == "done\n", fault + done.stderr

    def test_an_unknown_fault_is_refused(self, lab: Lab, tmp_path: Path) -> None:
        done = self.run(lab, tmp_path, "remved:3")
        assert done.returncode != 0
        assert "no fault this lab knows" in done.stderr


class TestUnavailable:
    def test_another_system(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(lab_module.platform, "machine", lambda: "aarch64")
        with pytest.raises(LabUnavailable, match=f"this is {sys.platform} on aarch64"):
            Lab.ensure()

    def test_no_namespaces(self, monkeypatch: pytest.MonkeyPatch) -> None:
        failed = subprocess.CompletedProcess([], 1, "", "unshare: Operation not permitted")
        monkeypatch.setattr(sandbox.subprocess, "run", lambda *args, **options: failed)
        with pytest.raises(LabUnavailable, match=r"Operation not permitted.*: be root"):
            sandbox.namespaces.__wrapped__()

    def test_no_tools(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(shutil, "which", lambda name: None)
        with pytest.raises(LabUnavailable, match="install util-linux"):
            sandbox.namespaces.__wrapped__()
        with pytest.raises(LabUnavailable, match="built on Debian"):
            lab_module.check_disk(tmp_path)

    def test_a_full_disk(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(recipe, "DISK", 1 << 62)
        with pytest.raises(LabUnavailable, match="GB left"):
            lab_module.check_disk(tmp_path)

    @pytest.mark.skipif(sys.platform == "win32", reason="no locks of this kind, and no lab")
    def test_something_else_has_its_name(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(lab_module, "check_machine", lambda: None)
        monkeypatch.setenv(lab_module.VARIABLE, str(tmp_path / "x"))
        (tmp_path / "x").mkdir()
        with pytest.raises(LabUnavailable, match="is not a lab of this recipe: remove it"):
            Lab.ensure()


@pytest.mark.skipif(sys.platform == "win32", reason="no locks of this kind, and no lab")
class TestBuilding:
    @pytest.fixture(autouse=True)
    def anywhere(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("check_machine", "check_disk", "debian_mirror"):
            monkeypatch.setattr(lab_module, name, lambda *args: None)

    def test_an_interrupted_build_leaves_no_lab(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        def interrupted(self: build.Build) -> None:
            (self.folder / lab_module.RECIPE).write_text(recipe.digest(), encoding="ascii")
            raise KeyboardInterrupt

        monkeypatch.setattr(build.Build, "__call__", interrupted)
        with pytest.raises(KeyboardInterrupt):
            Lab.at(tmp_path / "lab")
        assert not (tmp_path / "lab").exists()

    def test_leftovers_are_not_in_the_next_build(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(build.Build, "__call__", lambda self: None)
        monkeypatch.setattr(Lab, "_prove", lambda self: None)
        (tmp_path / "lab.building").mkdir()
        (tmp_path / "lab.building" / "left").touch()
        assert [file.name for file in Lab.at(tmp_path / "lab").folder.iterdir()] == [lab_module.RECIPE]

    def test_a_lab_without_working_directml_is_refused(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        crashed = subprocess.CompletedProcess([], 5, "", "DirectML said no")
        monkeypatch.setattr(build.Build, "__call__", lambda self: None)
        monkeypatch.setattr(Lab, "run", lambda self, *args, **options: crashed)
        with pytest.raises(LabUnavailable, match=r"(?s)does not work in it \(exit code 5\).*DirectML said no"):
            Lab.at(tmp_path / "lab")
        assert not (tmp_path / "lab").exists()

    def test_a_failing_step_is_named_with_its_output(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        def fails(self: build.Build) -> None:
            self.run("fetching the moon", ["sh", "-c", "echo too far >&2; exit 3"])

        monkeypatch.setattr(build.Build, "__call__", fails)
        with pytest.raises(LabUnavailable, match=r"(?s)fetching the moon failed \(exit code 3\).*too far"):
            Lab.at(tmp_path / "lab")

    def test_two_builders_build_once(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        built = []

        def builds(self: build.Build) -> None:
            built.append(self.folder)
            time.sleep(0.2)

        monkeypatch.setattr(build.Build, "__call__", builds)
        monkeypatch.setattr(Lab, "_prove", lambda self: None)
        with ThreadPoolExecutor(2) as pool:
            labs = list(pool.map(lambda _: Lab.at(tmp_path / "lab"), range(2)))
        assert labs[0] == labs[1]
        assert len(built) == 1


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        (
            "sources.list",
            "# deb http://no/debian trixie main\ndeb [arch=amd64] http://a/debian bookworm main",
            "http://a/debian",
        ),
        (
            "sources.list.d/x.list",
            "deb-src http://no/debian trixie main\ndeb http://b/debian stable contrib main",
            "http://b/debian",
        ),
        (
            "sources.list.d/x.sources",
            "Types: deb\nURIs: http://no/other\nSuites: any\nComponents: main\n\n# a comment\n"
            "Types: deb deb-src\nURIs: http://c/debian http://d\nSuites: trixie trixie-updates\nComponents: main\n",
            "http://c/debian",
        ),
        ("sources.list", "deb cdrom:[Debian] trixie main\ndeb http://u/ubuntu noble main", None),
        ("sources.list.d/x.sources", "Enabled: no\nTypes: deb\nURIs: http://no\nSuites: sid\nComponents: main\n", None),
    ],
)
def test_the_mirror_is_read_from_apts_sources(name: str, text: str, expected: str | None, tmp_path: Path) -> None:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / name).write_text(text, encoding="utf-8")
    if expected:
        assert build.debian_mirror(tmp_path) == expected
    else:
        with pytest.raises(LabUnavailable, match="no Debian mirror"):
            build.debian_mirror(tmp_path)


def test_the_recipe_names_no_host() -> None:
    for file in Path(recipe.__file__).parent.glob("*.*"):
        if file.suffix in {".py", ".c", ".spec"}:
            assert "://" not in file.read_text(encoding="utf-8"), file.name
