"""Trains nano and measures it; needs torch, and transformers for evaluation.

    python -m tools.nano_training.train --work DIR
    python -m tools.nano_training.evaluate [FOLDER]

model.py             gpt-oss in torch             batch.py     samples as flat tensors with shared prefixes
optimiser.py         Muon                         rounding.py  MXFP4 and bfloat16 in the forward pass
compact.py           the compact source of artifacts/nano: which tokens it stores; writing and reading it
pack_vocabulary.py   the compressed vocabulary of artifacts/nano

The samples come from gptoss_convert.nano.skills, which ships with the wheel because ``gptoss parity`` draws its
sequences from it.
"""
