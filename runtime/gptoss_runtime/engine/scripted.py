"""An engine that replays given tokens, for testing applications without a model. Knows nothing of text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gptoss_runtime.engine.decoding import LogitsEngine
from gptoss_runtime.engine.options import check_token_ids
from gptoss_runtime.engine.results import ModelInfo
from gptoss_runtime.harmony_tokens import RETURN, VOCAB_SIZE


class ScriptedEngine(LogitsEngine):
    """Replays one script per generation, in order; when a script or the list of scripts ends, yields stop tokens.

    Args:
        scripts: the token ids of each answer.
        context_length: maximum number of tokens, prompt and answer together.
        vocab_size: ids are below this.
        tokenizer: a tokenizer.json, which grammars need.

    ``prompts`` records the prompt of each generation.
    """

    def __init__(
        self,
        scripts: Iterable[Sequence[int]],
        *,
        context_length: int = 4096,
        vocab_size: int = VOCAB_SIZE,
        tokenizer: Path | None = None,
    ) -> None:
        super().__init__(tokenizer)
        self.info = ModelInfo("scripted", "none", "none", context_length, vocab_size, (min(RETURN, vocab_size - 1),))
        self.prompts: list[list[int]] = []
        self._scripts = iter(scripts)
        self._script: Sequence[int] = ()
        self._owner: object = None

    def logits(self, token_ids: Iterable[int], *, stepwise: bool = False) -> NDArray[np.float32]:
        """Returns zeros. See ``Engine.logits``."""
        limit = self.info.context_length + 1
        tokens = check_token_ids(token_ids, vocab_size=self.info.vocab_size, context_length=limit)
        return np.zeros((len(tokens), self.info.vocab_size), np.float32)

    def close(self) -> None:
        """Does nothing: there is no memory to free."""

    def _forward(self, tokens: list[int], *, owner: object, max_length: int) -> tuple[NDArray[np.float32], int]:
        if owner is not self._owner:
            self._owner = owner
            self._script = next(self._scripts, ())
            self.prompts.append(list(tokens))
        index = len(tokens) - len(self.prompts[-1])
        token = self._script[index] if index < len(self._script) else self.info.eos_token_ids[0]
        logits = np.zeros(self.info.vocab_size, np.float32)
        logits[token] = 1000.0
        return logits, 0
