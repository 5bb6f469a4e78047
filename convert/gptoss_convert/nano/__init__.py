"""The nano checkpoint: a trained gpt-oss, tiny in everything but its vocabulary and its format.

``materialise(folder)`` writes it as an ordinary Hugging Face checkpoint. ``skills`` generates samples of what it can
do, and ``vocabulary`` is o200k_harmony, offline. tools/nano_training trains and evaluates it.
"""

from __future__ import annotations

from gptoss_convert.nano.folder import materialise
from gptoss_convert.nano.source import source_dir

__all__ = ["materialise", "source_dir"]
