"""Compares an artifact's logits with its checkpoint's in float32.

streaming.py             gpt-oss in float32 by torch, one layer of a checkpoint in memory at a time
checkpoint_reference.py  the reference that this pass computes
reference_file.py        a reference in a file, and the protocol of references
sequences.py             the token sequences that both compute
session.py               runs any of our graphs with onnxruntime alone
metrics.py               KL divergence and top-1 agreement of two sets of logits
layers.py                errors of the hidden states, by layer
measure.py               measures an artifact against a reference
report.py                a measurement as an HTML page
"""
