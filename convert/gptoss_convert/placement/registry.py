"""What an installed onnxruntime has registered, as JSON: run this file with the Python that has the release.

Knows two introspection functions of onnxruntime's Python module, and the module alone: it runs under Windows Python (or
Wine) where neither onnx nor this package is. Knows nothing of what is done with the result.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

_END = 2**31 - 1  # the end version of a kernel that names only its first


def registered(provider: str = "DmlExecutionProvider") -> dict[str, Any]:
    """The kernels of one execution provider and the signatures of Microsoft's operators.

    Args:
        provider: as onnxruntime names it.

    Returns:
        ``release``; ``kernels`` with domain, operator, since version and types by constraint; ``signatures`` of
        every contributed operator, by "domain::operator".

    Source: ``get_all_opkernel_def`` and ``get_all_operator_schema``, of which docs/OperatorKernels.md is made.
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
    # onnx knows its own; the rest are Microsoft's, some of them in onnx's domain and only in version 1
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
    Path(sys.argv[1]).write_text(json.dumps(registered()), encoding="utf-8")
