"""Does an artifact compute what its checkpoint says? References, sequences, metrics and a report.

reference.py    the checkpoint in transformers, float32
sequences.py    what is fed to both
metrics.py      how far two sets of logits are apart
measure.py      an artifact against a reference, sequence by sequence
report.py       the same as a page to look at
"""
