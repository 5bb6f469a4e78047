"""Choosing among made-up adapters, reading made-up COM objects, and explaining real native messages."""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss_runtime.errors import (
    DeviceError,
    DeviceLost,
    DriverTooOld,
    GptOssError,
    InvalidRequest,
    NoAdapter,
    ResourceError,
)
from gptoss_runtime.machine import adapters, dxgi, hardware
from gptoss_runtime.machine.adapters import Adapter, choose_adapter, explain_native_error

GB = 1 << 30
BIG = Adapter(0, "NVIDIA GeForce RTX 4090", "NVIDIA", "0:70000", 24 * GB, 32 * GB, False, "32.0.15.6094", "12_2")
SMALL = Adapter(1, "NVIDIA GeForce RTX 3060", "NVIDIA", "0:-5", 12 * GB, 32 * GB, False, "32.0.15.6094", "12_2")
SHARED = Adapter(2, "Intel(R) UHD Graphics 770", "Intel", "0:71000", GB // 8, 32 * GB, False, "31.0.101.5590", "12_1")
OLD = Adapter(3, "AMD Radeon HD 5870", "AMD", "0:72000", 48 * GB, 32 * GB, False, None, None)
BASIC = Adapter(-1, "Microsoft Basic Render Driver", "Microsoft", "0:73000", 0, 32 * GB, True, "10.0.1.1", "12_1")
ALL = (BIG, SMALL, SHARED, OLD, BASIC)
NAMES = st.one_of(st.sampled_from([one.name for one in ALL]), st.text(max_size=12))
MANY = st.lists(
    st.builds(
        replace,
        st.sampled_from(ALL),
        name=NAMES,
        luid=st.integers(0, 2).map("0:{}".format),
        dedicated_memory=st.integers(0, 1 << 40),
        feature_level=st.sampled_from([None, "11_0", "12_2"]),
    ),
    max_size=6,
)


class TestChooseAdapter:
    @pytest.mark.parametrize(
        ("wanted", "expected"),
        [
            (None, BIG),
            (1, SMALL),
            ("1", SMALL),
            ("0:-5", SMALL),
            ("rtx 3060", SMALL),
            (" uhd ", SHARED),
        ],
    )
    def test_by_index_luid_or_name(self, wanted: int | str | None, expected: Adapter) -> None:
        assert choose_adapter(ALL, wanted) is expected

    def test_dedicated_memory_wins_over_shared_memory(self) -> None:
        small = replace(SMALL, dedicated_memory=8 * GB)
        assert SHARED.memory > small.memory
        assert choose_adapter([SHARED, small]) is small
        assert choose_adapter([SHARED]) is SHARED

    def test_a_usable_adapter_wins_over_a_larger_one(self) -> None:
        assert choose_adapter([OLD, SHARED]) is SHARED

    def test_an_ambiguous_name(self) -> None:
        with pytest.raises(InvalidRequest, match="matches several") as raised:
            choose_adapter(ALL, "geforce")
        assert raised.value.remedy is not None
        assert "0: NVIDIA GeForce RTX 4090" in raised.value.remedy
        assert "UHD" not in raised.value.remedy

    @pytest.mark.parametrize("wanted", [7, -1, "4090", "voodoo", "", " ", "9" * 5000, "0:1", True, "basic render"])
    def test_an_unknown_adapter(self, wanted: int | str) -> None:
        with pytest.raises(NoAdapter) as raised:
            choose_adapter(ALL, wanted)
        assert raised.value.remedy is not None
        assert BIG.name in raised.value.remedy
        assert len(raised.value.message) < 200

    def test_driver_too_old(self) -> None:
        for wanted in (None, 3, "radeon"):
            with pytest.raises(DriverTooOld, match="Radeon") as raised:
                choose_adapter([OLD, BASIC], wanted)
            assert "driver" in (raised.value.remedy or "")

    def test_no_remedy_says_provider_cpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A DirectML artifact does not run on the CPU: its user needs another artifact."""
        monkeypatch.setattr(hardware, "WINDOWS", True)
        errors: list[GptOssError | None] = [explain_native_error("loading", "887A0004")]
        for found in ([], [BASIC], [OLD]):
            with pytest.raises(DeviceError) as raised:
                choose_adapter(found)
            errors.append(raised.value)
        monkeypatch.setattr(hardware, "WINDOWS", False)
        with pytest.raises(NoAdapter) as elsewhere:
            choose_adapter([])
        for error in (*errors, elsewhere.value):
            assert error is not None
            assert "--provider cpu" not in (error.remedy or "")
            assert "gptoss convert --target cpu" in (error.remedy or "")

    def test_no_hardware_adapter(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(NoAdapter, match=r"only software.*Basic Render"):
            choose_adapter([BASIC])
        for windows, words in ((False, "needs Windows"), (True, "lists no graphics adapter")):
            monkeypatch.setattr(hardware, "WINDOWS", windows)
            with pytest.raises(NoAdapter, match=words):
                choose_adapter([])

    @given(MANY, st.one_of(st.none(), st.integers(), NAMES, st.just("0:1")))
    def test_any_adapters_and_any_request(self, found: list[Adapter], wanted: int | str | None) -> None:
        try:
            chosen = choose_adapter(found, wanted)
        except (NoAdapter, DriverTooOld, InvalidRequest):
            assert wanted is not None or not any(one.usable for one in found)
        else:
            assert chosen in found
            assert chosen.usable
            if wanted is None:
                assert chosen.dedicated_memory == max(one.dedicated_memory for one in found if one.usable)


SEEN = "E:\\_work\\1\\s\\onnxruntime\\core\\x.cpp(29)\\onnxruntime.dll!00006FFFFC0C388A: (caller: 00006FFFFC0C22E4) "
SEEN += "Exception(1) tid(24) "


class TestExplainNativeError:
    @pytest.mark.parametrize(
        ("text", "kind"),
        [
            (SEEN + "887A0005 The GPU device instance has been suspended.", DeviceLost),
            (SEEN + "887A0006 The GPU will not respond to more commands", DeviceLost),
            (SEEN + "887A0007", DeviceLost),
            (SEEN + "887a0020 ", DeviceLost),
            ("HRESULT 0x887A0005", DeviceLost),
            ("DXGI_ERROR_DEVICE_HUNG", DeviceLost),
            ("GPU device removed? DEVICE_REMOVED (0x887A0005)", DeviceLost),
            (SEEN + "8007000E Out of memory.\r\n", ResourceError),
            (SEEN + "8007000E while 887A0005", ResourceError),  # the first is what was thrown
            (SEEN + "887A0004 ", NoAdapter),
            (SEEN + "887A0002", NoAdapter),
            ("No adapter is available for DML.", NoAdapter),
        ],
    )
    def test_messages_with_a_known_code(self, text: str, kind: type[GptOssError]) -> None:
        error = explain_native_error("generating", text)
        assert type(error) is kind
        assert error is not None
        assert error.message.startswith("generating: ")
        assert error.remedy
        assert "\n" not in error.message

    @pytest.mark.parametrize("text", ["", "00007FF887A00050", "x887A0005", "887A00055", "8007000", "device", SEEN])
    def test_messages_without_a_known_code(self, text: str) -> None:
        assert explain_native_error("generating", text) is None

    @given(st.text(), st.sampled_from(["887A0005", "0x887a0007", "DXGI_ERROR_DEVICE_REMOVED"]), st.text())
    def test_a_code_within_any_text(self, before: str, code: str, after: str) -> None:
        error = explain_native_error("x", f"{before} {code} {after}")
        assert error is not None
        assert len(error.message) < 500
        nothing = explain_native_error("x", f"{before}F{code}0{after}")
        assert nothing is None or explain_native_error("x", f"{before} {after}") is not None


class Fake:
    """A COM object: a vtable of functions that ctypes calls here as it calls Windows' on Windows.

    ``methods`` maps vtable indices to (argument types, function); ``counts`` counts references.
    """

    def __init__(self, name: str, counts: Counter[str], methods: dict[int, tuple[Sequence[Any], Any]]) -> None:
        self.table = (ctypes.c_void_p * 20)()
        self.kept = []

        def release(this: int) -> int:
            counts[name] -= 1
            return 0

        for slot, (types, function) in {dxgi._RELEASE: ((), release), **methods}.items():
            pointer = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, *types)(function)
            self.kept.append(pointer)
            self.table[slot] = ctypes.cast(pointer, ctypes.c_void_p)
        self.object = ctypes.c_void_p(ctypes.addressof(self.table))
        self.address = ctypes.addressof(self.object)


OUT = ctypes.POINTER(ctypes.c_void_p)
E_FAIL, E_NOINTERFACE, UNSUPPORTED = 0x80004005 - (1 << 32), 0x80004002 - (1 << 32), 0x887A0004 - (1 << 32)


class Machine:
    """DXGI of a machine with the given adapters, each of which can fail in its own way."""

    def __init__(self, *described: dict[str, Any], levels: int = 0xC100, enumerate_fails: bool = False) -> None:
        self.counts: Counter[str] = Counter()
        self.levels = levels
        self.fakes = [self.adapter(one) for one in described]

        def enum(this: int, index: int, out: Any) -> int:
            if enumerate_fails:
                return E_FAIL
            if index >= len(self.fakes):
                return dxgi.NOT_FOUND - (1 << 32)
            self.counts["adapter"] += 1
            out[0] = self.fakes[index].address
            return 0

        self.factory = Fake("factory", self.counts, {dxgi._ENUM_ADAPTERS1: ((ctypes.c_uint32, OUT), enum)})

    def adapter(self, one: dict[str, Any]) -> Fake:
        def describe(this: int, desc: Any) -> int:
            for name, value in one.get("desc", {}).items():
                setattr(desc[0], name, value)
            text = one.get("name", "A GPU").encode("utf-16-le")
            ctypes.memmove(ctypes.addressof(desc[0]), text, min(len(text), 256))
            desc[0].luid.high, desc[0].luid.low = one.get("luid", (0, 1))
            return int(one.get("describe", 0))

        def query(this: int, interface: Any, out: Any) -> int:
            if one.get("old"):
                return E_NOINTERFACE
            self.counts["adapter"] += 1
            out[0] = this
            return 0

        def driver(this: int, interface: Any, version: Any) -> int:
            version[0] = (32 << 48) | (15 << 16) | 6094
            return int(one.get("driver", 0))

        def memory(this: int, node: int, group: int, info: Any) -> int:
            info[0].budget, info[0].usage = 7 * GB, GB
            return int(one.get("memory", 0))

        guid = ctypes.POINTER(ctypes.c_ubyte * 16)
        info = (ctypes.c_uint32, ctypes.c_int32, ctypes.POINTER(dxgi._MemoryInfo))
        return Fake(
            "adapter",
            self.counts,
            {
                dxgi._QUERY_INTERFACE: ((guid, OUT), query),
                dxgi._CHECK_INTERFACE_SUPPORT: ((guid, ctypes.POINTER(ctypes.c_int64)), driver),
                dxgi._GET_DESC1: ((ctypes.POINTER(dxgi._Desc1),), describe),
                dxgi._QUERY_VIDEO_MEMORY_INFO: (info, memory),
            },
        )

    def library(self, name: str) -> Any:
        return self

    def CreateDXGIFactory1(self, interface: Any, out: Any) -> int:  # noqa: N802  (Windows' name)
        self.counts["factory"] += 1
        out._obj.value = self.factory.address
        return 0

    def D3D12CreateDevice(self, adapter: Any, level: Any, interface: Any, out: None) -> int:  # noqa: N802
        return 1 if level.value <= self.levels else UNSUPPORTED  # 1: S_FALSE, it would


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> Any:
    def listed(machine: Machine) -> list[Adapter]:
        monkeypatch.setattr(hardware, "WINDOWS", True)
        monkeypatch.setattr(dxgi, "_load_library", machine.library)
        try:
            return adapters.list_adapters()
        finally:
            assert not +machine.counts, "not released"
            assert not -machine.counts, "released too often"

    return listed


class TestDxgi:
    def test_structure_layouts_match_windows(self) -> None:
        assert ctypes.sizeof(dxgi._Desc1) == 312
        assert dxgi._Desc1.dedicated_video.offset == 272
        assert dxgi._Desc1.luid.offset == 296
        assert ctypes.sizeof(dxgi._MemoryInfo) == 32

    @pytest.mark.skipif(hardware.WINDOWS, reason="there may be some")
    def test_no_adapters_on_other_systems(self) -> None:
        assert adapters.list_adapters() == []

    def test_a_software_and_a_hardware_adapter(self, listed: Any) -> None:
        basic = {"desc": {"vendor_id": 0x1414, "device_id": 0x8C}, "name": "Basic Render Driver"}
        sizes = {"dedicated_video": 8 * GB, "dedicated_system": GB, "shared": 16 * GB}
        card = {"desc": {"vendor_id": 0x10DE, **sizes}, "name": "Grafikkarte é", "luid": (-1, 0xFFFFFFFB)}
        software, real = listed(Machine(basic, card))
        assert (software.index, software.software, software.vendor) == (-1, True, "Microsoft")
        expected = Adapter(0, "Grafikkarte é", "NVIDIA", "-1:-5", 9 * GB, 16 * GB, False, "32.0.15.6094", "12_1")
        assert real == replace(expected, budget=7 * GB, usage=GB)

    def test_an_old_windows_or_driver_leaves_values_unknown(self, listed: Any) -> None:
        silent = {"old": True, "driver": E_FAIL, "desc": {"flags": 2, "vendor_id": 0x5333}, "name": ""}
        (one,) = listed(Machine(silent, levels=0))
        assert (one.driver, one.feature_level, one.budget, one.usage) == (None, None, None, None)
        assert (one.vendor, one.name, one.software, one.usable) == ("5333", "(no name)", True, False)
        (one,) = listed(Machine({"memory": E_FAIL}))
        assert one.budget is None

    def test_a_name_that_fills_its_field(self, listed: Any) -> None:
        (one,) = listed(Machine({"name": "x" * 200}))
        assert one.name == "x" * 128

    @pytest.mark.parametrize("machine", [{"enumerate_fails": True}, {}])
    def test_a_failing_dxgi(self, listed: Any, machine: dict[str, Any]) -> None:
        with pytest.raises(DeviceError, match="80004005"):
            listed(Machine({"describe": E_FAIL}, **machine))

    def test_a_null_pointer_is_not_dereferenced(self, monkeypatch: pytest.MonkeyPatch, listed: Any) -> None:
        machine = Machine()
        machine.factory.address = 0
        machine.counts["factory"] -= 1
        with pytest.raises(DeviceError, match="null pointer"):
            listed(machine)

    def test_endless_enumeration_is_limited(self, listed: Any) -> None:
        assert len(listed(Machine(*[{}] * 100))) == dxgi._MAX_ADAPTERS
