"""Maintainers' tools, run from a clone and not part of the wheel.

nano_training/             trains and evaluates nano, the checkpoint in artifacts/nano
package_map.py             the map and pictures of the packages in CONTRIBUTING.md
placement_table/           regenerates the table of DirectML's kernels that gptoss_convert.placement reads
transformers_reference.py  a checkpoint's logits from transformers, for nano's evaluation, tests and benchmarks
"""
