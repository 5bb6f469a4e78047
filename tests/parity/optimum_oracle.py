"""Exports a checkpoint with Optimum's own ONNX exporter; run as a program in a process of its own.

optimum-onnx 0.1 wants transformers < 4.58 and this project's tests run on transformers 5, so the exporter lives in a
folder of its own (see conftest.py) that comes first on this process's path; torch, onnx and numpy are shared.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    packages, checkpoint, out = sys.argv[1:]
    sys.path.insert(0, packages)
    from optimum.exporters.onnx import main_export

    main_export(
        checkpoint,
        output=out,
        task="text-generation",
        device="cpu",
        dtype="fp32",
        do_validation=False,
        no_post_process=True,
        library_name="transformers",
        framework="pt",
    )
