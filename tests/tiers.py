"""The two tiers of tests: what belongs to the full one, and, with ``--no-skips``, that nothing in it is left out.

A test is of the full tier if it has the marker ``integration``, or if it takes a fixture that needs more than this
repository and its Python packages.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterable
from typing import Any

import pytest

INTEGRATION = pytest.mark.integration
# Fixtures that install or start other programs, and a C compiler.
HEAVY_FIXTURES = {
    *("browser", "clients", "core", "lab", "library", "node", "openai_package", "optimum_packages"),
}
# Tests that may be skipped with --no-skips, by name, with the reason.
_STRACE = "strace is not part of every system; the fast tier looks for telemetry's files"
ALLOWED_SKIPS: dict[str, str] = {
    "test_no_command_contacts_another_machine": _STRACE,
    "test_the_server_contacts_nobody_but_its_clients": _STRACE,
}


def mostly_integration(values: Iterable[Any], *, fast: Collection[Any] = ()) -> list[Any]:
    """Parameters of which only those in ``fast`` belong to the fast tier."""
    return [value if value in fast else pytest.param(value, marks=INTEGRATION) for value in values]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--no-skips", action="store_true", help="a skipped test fails, but for those in tests/tiers.py")


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HEAVY_FIXTURES.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(INTEGRATION)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    name = item.nodeid.rpartition("::")[2].partition("[")[0]
    if name not in ALLOWED_SKIPS and not hasattr(report, "wasxfail"):
        _fail_if_skipped(report, item.config)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _fail_if_skipped(report, collector.config)
    return report


def _fail_if_skipped(report: pytest.TestReport | pytest.CollectReport, config: pytest.Config) -> None:
    if report.skipped and config.getoption("--no-skips"):
        *_, reason = report.longrepr if isinstance(report.longrepr, tuple) else (report.longrepr,)
        report.outcome = "failed"
        report.longrepr = f"{reason}\n(with --no-skips this fails; see ALLOWED_SKIPS in tests/tiers.py)"
