"""Does an artifact compute what its checkpoint says? References, sequences, metrics and a report.

streaming.py             gpt-oss in float32, layer by layer over a checkpoint
checkpoint_reference.py  that pass as a reference        reference_file.py   a reference in a file, and what one is
sequences.py             what is fed                     session.py          any graph by onnxruntime alone
metrics.py               how far two sets of logits are apart
layers.py                the same of hidden states       measure.py          an artifact against a reference
report.py                a measurement as a page to look at
reference.py             the checkpoint in transformers: an oracle for tests, and nano's judge
"""
