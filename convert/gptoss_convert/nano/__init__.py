"""The nano checkpoint: a trained gpt-oss, tiny in everything but its vocabulary and its format.

``materialise(folder)`` writes it as an ordinary Hugging Face checkpoint; ``skills`` says what it can do, with samples;
``vocabulary`` holds o200k_harmony offline. ``train`` and ``evaluate`` are run with ``python -m`` and need torch.
"""

from __future__ import annotations

from gptoss_convert.nano.folder import materialise
from gptoss_convert.nano.source import source_dir

__all__ = ["materialise", "source_dir"]
