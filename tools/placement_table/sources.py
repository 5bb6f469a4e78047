"""Parses the kernels that DirectML registers from onnxruntime's C++ sources.

Reads the macros and tables of OperatorRegistration.cpp and the since versions of OperatorVersions.h as text. Rows in
``#if DML_TARGET_VERSION`` are included: releases are built with the newest DirectML.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from gptoss_convert.errors import ConversionError
from gptoss_convert.placement.table import Kernel

_DOMAINS = {"REG_INFO_MS": "com.microsoft", "REG_INFO_MS_ALIAS": "com.microsoft", "REG_INFO_MSDML": "com.microsoft.dml"}
_ONNX_NAMES = {"float32": "float", "float64": "double"}
_SKIPPED = {"undefined", "string", "complex64", "complex128"}  # in the enumeration, but never a type constraint


def parse_kernels(registration: str, versions: str) -> list[Kernel]:
    """Parses the registration table.

    Args:
        registration: the text of OperatorRegistration.cpp.
        versions: the text of OperatorVersions.h.

    Raises:
        ConversionError: the text cannot be parsed.

    Source: onnxruntime/core/providers/dml, release 1.21.0.
    """
    registration = _without_comments(registration)
    since = _since_versions(versions)
    names = {name: tuple(re.findall(r'"(\w+)"', body)) for name, body in _arrays(registration, "const char*")}
    kinds = _enumeration(registration)
    lists = _type_lists(registration, kinds)
    found = []
    for macro, version, op, rest in re.findall(r"\{(REG_INFO\w*)\(\s*(\d+),\s*(\w+)\s*,(.*)\)\}", registration):
        known = re.search(r"(typeName\w+)\s*,\s*(supportedTypeList\w+)", rest)
        key = ("Msft" if macro in _DOMAINS else "Onnx", int(version), op)
        if known is None or key not in since:
            raise ConversionError(
                f"OperatorRegistration.cpp: cannot parse the row of {op} {version}",
                remedy="Give both files of the same release.",
            )
        host = re.search(r"requiredConstantCpuInputs\(([\d,\s]*)\)", rest)
        query = re.search(r"\bQuery\w+", rest)
        inputs = tuple(int(n) for n in re.findall(r"\d+", host[1])) if host else ()
        types = dict(zip(names[known[1]], lists[known[2]], strict=True))
        found.append(Kernel(_DOMAINS.get(macro, ""), op, since[key], types, inputs, query[0] if query else ""))
    if not found:
        raise ConversionError(
            "OperatorRegistration.cpp: no row found",
            remedy="Give onnxruntime/core/providers/dml/DmlExecutionProvider/src/Operators/OperatorRegistration.cpp.",
        )
    return found


def _without_comments(text: str) -> str:
    return re.sub(r"/\*.*?\*/", "", re.sub(r"//[^\n]*", "", text), flags=re.S)


def _since_versions(text: str) -> dict[tuple[str, int, str], int]:
    found: dict[tuple[str, int, str], int] = {}
    space: tuple[str, int] | None = None
    for line in text.splitlines():
        if opened := re.search(r"namespace (Onnx|Msft)OperatorSet(\d+)", line):
            space = opened[1], int(opened[2])
        elif space and (constant := re.search(r"sc_sinceVer_(\w+)\s*=\s*(\d+)", line)):
            found[(*space, constant[1])] = int(constant[2])
    return found


def _arrays(text: str, element: str) -> list[tuple[str, str]]:
    pattern = rf"std::array<{re.escape(element)}, \d+> (\w+)\s*=\s*([^;]+);"
    return re.findall(pattern, text)


def _enumeration(text: str) -> dict[str, frozenset[str]]:
    body = re.search(r"enum class SupportedTensorDataTypes[^{]*\{(.*?)\};", text, flags=re.S)
    if body is None:
        raise ConversionError("OperatorRegistration.cpp has no SupportedTensorDataTypes", remedy="Give the right file.")
    kinds: dict[str, frozenset[str]] = {}
    for name, value in re.findall(r"(\w+)\s*=\s*([^,]+),", body[1]):
        if "<<" in value:
            sequence, plain = name.startswith("Sequence"), name.removeprefix("Sequence").lower()
            tensor = f"tensor({_ONNX_NAMES.get(plain, plain)})"
            skipped = plain in _SKIPPED or name in ("SequenceUInt4", "SequenceInt4")
            kinds[name] = frozenset() if skipped else frozenset({f"seq({tensor})" if sequence else tensor})
        elif "static_cast" in value:
            kinds[name] = frozenset().union(*kinds.values())
        else:
            kinds[name] = frozenset().union(*(kinds[part] for part in re.findall(r"\w+", value)))
    return kinds


def _type_lists(text: str, kinds: Mapping[str, frozenset[str]]) -> dict[str, list[tuple[str, ...]]]:
    lists: dict[str, list[tuple[str, ...]]] = {}
    for name, body in _arrays(text, "SupportedTensorDataTypes"):
        if body in lists:
            lists[name] = lists[body]
            continue
        lists[name] = [
            tuple(sorted(frozenset().union(*(kinds[kind] for kind in re.findall(r"::(\w+)", item)))))
            for item in body.strip(" {}\n").split(",")
            if item.strip()
        ]
    return lists
