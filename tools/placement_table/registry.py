"""Dumps the kernels that an installed onnxruntime registers, as JSON: run it with the Python that has the release.

    python registry.py registry.json

Uses two introspection functions of onnxruntime and imports nothing else: it runs in Windows Python (or Wine), without
onnx and without this package.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

_END = 2**31 - 1  # the end version of a kernel without a last version


def read_registry(provider: str = "DmlExecutionProvider") -> dict[str, Any]:
    """Reads the kernels of one execution provider and the signatures of Microsoft's operators.

    Args:
        provider: onnxruntime's name of it.

    Returns:
        ``release``; ``kernels`` with domain, operator, since version and types by constraint; ``signatures`` of
        every contributed operator, by "domain::operator".

    Source: ``get_all_opkernel_def`` and ``get_all_operator_schema``, which onnxruntime's docs/OperatorKernels.md is
    generated with.
    """
    import onnxruntime
    from onnxruntime.capi import _pybind_state as state

    kernels = [
        {
            **{"domain": kernel.domain, "op": kernel.op_name, "since": kernel.version_range[0]},
            **{"until": None if kernel.version_range[1] == _END else kernel.version_range[1]},
            "types": {name: sorted(types) for name, types in kernel.type_constraints.items()},
        }
        for kernel in state.get_all_opkernel_def()
        if kernel.provider == provider
    ]
    # onnx has the schemas of its own operators; the rest are Microsoft's, some in onnx's domain, only in version 1
    contributed = [
        schema
        for schema in state.get_all_operator_schema()
        if schema.domain == "com.microsoft" or (schema.domain == "" and schema.support_level.name == "EXPERIMENTAL")
    ]
    return {
        "release": onnxruntime.__version__,
        "kernels": kernels,
        "signatures": {f"{schema.domain}::{schema.name}": _signature(schema) for schema in contributed},
    }


def _signature(schema: Any) -> dict[str, Any]:
    allowed = {constraint.type_param_str: constraint.allowed_type_strs for constraint in schema.type_constraints}
    return {
        "since": schema.since_version,
        "inputs": [value.typeStr for value in schema.inputs],
        "outputs": [value.typeStr for value in schema.outputs],
        "only": {name: types[0] for name, types in sorted(allowed.items()) if len(types) == 1},
    }


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(read_registry()), encoding="utf-8")
