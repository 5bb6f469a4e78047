"""Plants each fault of the table in a copy of the packages; the tests that it names must fail.

A test that fails must do so by an assertion: a copy that no longer imports or loads would prove nothing.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import pytest

from . import remembered
from .fault import PACKAGES, ROOT, Fault, copy_packages
from .faults import FAULTS

AT_ONCE = 2  # number of concurrent runs; each uses about one core
CONTROL = "control"
ASSERTION = re.compile(r"(AssertionError|Failed: DID NOT (RAISE|WARN))\b|assert\b")
IN_PACKAGES = re.compile(r"gptoss_(convert|runtime)[/\\]")


@dataclass(frozen=True)
class Run:
    """How a run of named tests ended.

    Attributes:
        code: pytest's exit code.
        outcomes: of every test that ran, how it failed; empty where it passed.
        output: all that was printed.
    """

    code: int
    outcomes: Sequence[str]
    output: str


def run(tests: Sequence[str], folder: Path, fault: Fault | None) -> Run:
    """Runs tests of the checkout on a copy of its packages, in a process of its own.

    Args:
        tests: their node ids.
        folder: created and removed by the run; cached logits of transformers are in its parent folder.
        fault: what is planted in the copy.
    """
    try:
        root = copy_packages(folder / "planted")
        for edit in fault.edits if fault else ():
            edit.apply(root)
        report = folder / "report.xml"
        options = [
            *("-q", "-m", "", "-p", "no:cacheprovider", "-p", remembered.__name__),
            f"--basetemp={folder / 'temp'}",
            f"--junitxml={report}",
        ]
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *options, *tests],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            env=environment(root, folder),
            timeout=600,
        )
        outcomes = [how(case) for case in ElementTree.parse(report).iter("testcase")] if report.exists() else []
        return Run(done.returncode, outcomes, done.stdout[-6000:] + done.stderr[-2000:])
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def environment(root: Path, folder: Path) -> dict[str, str]:
    """This process's environment, with the copy first on the import path."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV_"))}
    copies = [str(root / parent) for parent in dict.fromkeys(PACKAGES.values())]
    more = {
        "PYTHONPATH": os.pathsep.join([*copies, *filter(None, [kept.get("PYTHONPATH")])]),
        "PYTHONUTF8": "1",
        "OMP_NUM_THREADS": "1",  # torch's
        remembered.FOLDER: str(folder.parent),
        "HYPOTHESIS_STORAGE_DIRECTORY": str(
            folder / "hypothesis"
        ),  # failing examples must not be replayed in other runs
    }
    return kept | more


def how(case: ElementTree.Element) -> str:
    """How a test failed: the exception and its location; "error" outside of its call; "" if it passed."""
    if case.find("error") is not None or case.find("skipped") is not None:
        return "error"
    failure = case.find("failure")
    if failure is None:
        return ""
    where = (failure.text or "").strip().rsplit("\n", 1)[-1]
    return f"{failure.get('message', '')}\n{where}"


def is_an_assertion(outcome: str) -> bool:
    message, _, where = outcome.rpartition("\n")
    return ASSERTION.match(message) is not None and IN_PACKAGES.search(where) is None


@pytest.fixture(scope="module")
def runs(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mapping[str, Future[Run]]]:
    """The runs of all selected tests, a few at once, in their order."""
    folder, pool, futures = tmp_path_factory.mktemp("mutations"), ThreadPoolExecutor(AT_ONCE), {}
    selected = {item.name for item in request.session.items if item.path == Path(__file__)}
    if test_the_named_tests_pass_without_a_fault.__name__ in selected:
        every = sorted({test for fault in FAULTS for test in fault.caught_by})
        futures[CONTROL] = pool.submit(run, every, folder / CONTROL, None)
    for fault in FAULTS:
        if f"{test_a_fault_is_caught.__name__}[{fault.name}]" in selected:
            futures[fault.name] = pool.submit(run, fault.caught_by, folder / fault.name, fault)
    yield futures
    pool.shutdown(cancel_futures=True)


def test_every_fault_can_be_planted(tmp_path: Path) -> None:
    root = copy_packages(tmp_path)
    pristine = {edit.file: (root / edit.file).read_bytes() for fault in FAULTS for edit in fault.edits}
    for fault in FAULTS:
        for edit in fault.edits:
            edit.apply(root)
        for edit in fault.edits:
            compile((root / edit.file).read_text("utf-8"), edit.module, "exec")
            (root / edit.file).write_bytes(pristine[edit.file])
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)


@pytest.mark.integration
def test_the_named_tests_pass_without_a_fault(runs: Mapping[str, Future[Run]]) -> None:
    """Also from a copy, so that only the fault can make them fail below."""
    done = runs[CONTROL].result()
    assert done.code == 0, done.output
    assert len(done.outcomes) >= len({test for fault in FAULTS for test in fault.caught_by})
    assert not any(done.outcomes), done.output  # a test that is skipped would catch nothing


@pytest.mark.integration
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_is_caught(fault: Fault, runs: Mapping[str, Future[Run]]) -> None:
    done = runs[fault.name].result()
    assert done.code == 1, f"{fault.breaks}: pytest ended with {done.code}\n{done.output}"
    assert len(done.outcomes) >= len(fault.caught_by), done.output
    for outcome in done.outcomes:
        assert is_an_assertion(outcome), f"{fault.breaks}: {outcome or 'not noticed'}\n{done.output}"
