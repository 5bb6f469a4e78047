"""The switch that makes a skipped test fail, and the marker that some fixtures bring along."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import tiers

SUITE = """
    import pytest

    @pytest.fixture
    def lab(): pass

    def test_passes(): pass

    def test_heavy(lab): pass

    @pytest.mark.skipif(True, reason="not on this machine")
    def test_skipped(): pass

    @pytest.mark.parametrize("number", [1, 2])
    def test_skips(number): pytest.skip("no such program")

    def test_is_expected_to_fail():
        pytest.xfail("known")
"""


@pytest.fixture
def suite(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
    pytester.makeini("[pytest]\nmarkers = integration")
    pytester.makepyfile(SUITE)
    return pytester


def run(suite: pytest.Pytester, *options: str) -> pytest.RunResult:
    return suite.runpytest("-p", "tests.tiers", "-p", "no:cacheprovider", *options)


def test_a_skip_is_a_skip_by_default(suite: pytest.Pytester) -> None:
    run(suite).assert_outcomes(passed=2, skipped=3, xfailed=1)


def test_a_skip_fails_if_asked(suite: pytest.Pytester) -> None:
    done = run(suite, "--no-skips")
    done.assert_outcomes(passed=2, failed=2, errors=1, xfailed=1)
    done.stdout.fnmatch_lines(["*not on this machine", "*no such program"])
    assert done.ret == pytest.ExitCode.TESTS_FAILED


def test_a_skip_with_a_reason_in_the_table_is_allowed(suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tiers.ALLOWED_SKIPS, "test_skips", "there is none anywhere")
    run(suite, "--no-skips").assert_outcomes(passed=2, skipped=2, errors=1, xfailed=1)


def test_a_file_that_skips_itself_fails_if_asked(suite: pytest.Pytester) -> None:
    suite.makepyfile(test_absent="import pytest; pytest.importorskip('no_such_package')")
    assert run(suite).ret == pytest.ExitCode.OK
    done = run(suite, "--no-skips")
    assert done.ret == pytest.ExitCode.INTERRUPTED
    done.stdout.fnmatch_lines(["*could not import 'no_such_package'*"])


def test_fixtures_that_need_more_mark_their_tests(suite: pytest.Pytester) -> None:
    run(suite, "-m", "integration").assert_outcomes(passed=1, deselected=5)


def test_only_some_parameters_are_fast() -> None:
    first, second = tiers.mostly_integration(["a", "b"], fast="a")
    assert first == "a"
    assert (second.values, [mark.name for mark in second.marks]) == (("b",), ["integration"])


def test_the_skips_that_are_allowed_name_tests() -> None:
    sources = "\n".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.rglob("test_*.py"))
    assert [name for name in tiers.ALLOWED_SKIPS if f"def {name}(" not in sources] == []
