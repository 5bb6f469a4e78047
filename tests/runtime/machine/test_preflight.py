"""Whether models fit, checked with memory budgets and made-up adapters."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss_runtime.artifact.manifest import MemoryBudget
from gptoss_runtime.errors import BackendUnavailable, NoAdapter, ResourceError
from gptoss_runtime.machine import hardware, installed, preflight
from gptoss_runtime.machine.adapters import Adapter

GB = 1 << 30
CARD = Adapter(0, "A Card", "NVIDIA", "0:1", 16 * GB, 32 * GB, False, "1.2.3.4", "12_2")
INTEGRATED = replace(CARD, name="A Chip", dedicated_memory=GB // 8, shared_memory=16 * GB)
# gpt-oss-20b in four bits, roughly
BUDGET = MemoryBudget(weights=12_660_000_000, kv_per_token=49152, context=8192, peak=13_800_000_000)
SIZES = st.integers(0, 1 << 40)
BUDGETS = st.builds(
    lambda weights, more, kv, work, context: MemoryBudget(
        weights=weights,
        kv_per_token=kv,
        context=context,
        peak=weights + more + context * (kv + work),
        work_per_token=work,
    ),
    *(SIZES, SIZES, st.integers(1, 1 << 20), st.integers(0, 1 << 20), st.integers(1, 1 << 17)),
)
ADAPTERS = st.builds(
    replace,
    st.just(CARD),
    dedicated_memory=SIZES,
    shared_memory=SIZES,
    budget=st.one_of(st.none(), SIZES),
    usage=st.one_of(st.none(), SIZES),
)


class TestBudget:
    def test_the_peak_is_at_its_context(self) -> None:
        assert BUDGET.at(BUDGET.context) == BUDGET.peak
        assert BUDGET.fixed == BUDGET.peak - 8192 * 49152

    @given(BUDGETS, st.integers(0, 1 << 41))
    def test_the_largest_context_fits_and_one_more_does_not(self, budget: MemoryBudget, memory: int) -> None:
        assert budget.at(budget.context) == budget.peak
        most = budget.largest_context(memory)
        assert most >= 0
        assert budget.at(most + 1) > memory
        assert most == 0 or budget.at(most) <= memory


class TestAvailableMemory:
    def test_memory_is_reserved_for_the_desktop(self) -> None:
        assert preflight.available_memory(CARD) == 16 * GB - preflight.RESERVE
        assert preflight.available_memory(replace(CARD, dedicated_memory=GB // 4, shared_memory=GB)) == 0

    def test_an_integrated_adapter_uses_shared_memory(self) -> None:
        assert preflight.available_memory(INTEGRATED) == 16 * GB - preflight.RESERVE

    def test_the_windows_budget_is_a_limit(self) -> None:
        assert preflight.available_memory(replace(CARD, budget=15 * GB, usage=5 * GB)) == 10 * GB
        assert preflight.available_memory(replace(CARD, budget=GB, usage=2 * GB)) == 0
        assert preflight.available_memory(replace(CARD, budget=64 * GB)) == preflight.available_memory(CARD)


class TestCheckMemory:
    def test_a_model_that_fits(self) -> None:
        preflight.check_memory(BUDGET, CARD, 8192)

    def test_a_smaller_context_fits(self) -> None:
        text = r"131,072 tokens needs 19\.8 GB, but A Card has 16\.6 GB available of 17\.2 GB"
        with pytest.raises(ResourceError, match=text) as raised:
            preflight.check_memory(BUDGET, CARD, 131072)
        most = preflight.largest_context(BUDGET, CARD)
        assert most % 1024 == 0
        assert f"--context-length {most})" in (raised.value.remedy or "")
        preflight.check_memory(BUDGET, CARD, most)

    def test_no_context_fits(self) -> None:
        with pytest.raises(ResourceError) as raised:
            preflight.check_memory(BUDGET, replace(CARD, dedicated_memory=8 * GB), 8192)
        assert "smaller preset" in (raised.value.remedy or "")
        assert "context" not in (raised.value.remedy or "")
        assert "--provider cpu" not in (raised.value.remedy or "")  # a DirectML artifact does not run there
        assert "gptoss convert --target cpu" in (raised.value.remedy or "")

    @given(BUDGETS, ADAPTERS, st.integers(1, 1 << 18))
    def test_the_context_length_in_the_remedy_fits(self, budget: MemoryBudget, adapter: Adapter, context: int) -> None:
        most = preflight.largest_context(budget, adapter)
        if budget.at(context) <= preflight.available_memory(adapter):
            preflight.check_memory(budget, adapter, context)
            return
        with pytest.raises(ResourceError) as raised:
            preflight.check_memory(budget, adapter, context)
        assert most < context
        if f"={most} " in (raised.value.remedy or ""):
            preflight.check_memory(budget, adapter, most)


class TestPlanDirectml:
    @pytest.fixture(autouse=True)
    def a_machine(self, monkeypatch: pytest.MonkeyPatch) -> None:
        builds = {"onnxruntime-directml": "1.24.4", "onnxruntime-genai-directml": "0.13.1"}
        monkeypatch.setattr(hardware, "WINDOWS", True)
        monkeypatch.setattr(installed, "find_builds", lambda: builds)
        second = replace(CARD, index=1, name="Another", luid="0:2", dedicated_memory=24 * GB)
        monkeypatch.setattr(preflight, "list_adapters", lambda: [CARD, second])

    def test_the_default_context_is_the_longest_that_fits(self) -> None:
        adapter, context = preflight.plan_directml(BUDGET, None, 131072, None)
        assert (adapter.index, context) == (1, 131072)
        adapter, context = preflight.plan_directml(BUDGET, "a card", 131072, None)
        assert (adapter.index, context) == (0, preflight.largest_context(BUDGET, CARD))

    def test_a_requested_context_is_not_reduced(self) -> None:
        adapter, context = preflight.plan_directml(BUDGET, 0, 131072, 4096)
        assert (adapter.index, context) == (0, 4096)
        with pytest.raises(ResourceError):
            preflight.plan_directml(BUDGET, 0, 131072, 131072)

    def test_without_a_manifest_memory_is_not_checked(self) -> None:
        adapter, context = preflight.plan_directml(None, 0, 131072, None)
        assert (adapter.index, context) == (0, 131072)

    def test_unknown_adapter(self) -> None:
        with pytest.raises(NoAdapter):
            preflight.plan_directml(BUDGET, 2, 131072, None)

    def test_directml_on_another_system(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(hardware, "WINDOWS", False)
        with pytest.raises(BackendUnavailable, match="needs Windows"):
            preflight.plan_directml(BUDGET, None, 131072, None)


class TestCountSlots:
    def test_the_number_of_slots_that_fit(self) -> None:
        assert preflight.count_slots(BUDGET, CARD, 8192, 4) == 3
        assert preflight.count_slots(BUDGET, CARD, 8192, 1) == 1
        assert preflight.count_slots(BUDGET, CARD, 65536, 4) == 1
        assert preflight.count_slots(None, CARD, 8192, 4) == 1

    @given(BUDGETS, ADAPTERS, st.integers(1, 1 << 17), st.integers(1, 8))
    def test_the_slots_fit(self, budget: MemoryBudget, adapter: Adapter, context: int, requested: int) -> None:
        slots = preflight.count_slots(budget, adapter, context, requested)
        assert 1 <= slots <= requested
        each = budget.at(context) - budget.weights
        assert slots == 1 or budget.weights + slots * each <= preflight.available_memory(adapter)
