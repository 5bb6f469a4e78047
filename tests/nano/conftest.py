from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gptoss_convert.nano.vocabulary import write_tiktoken


@pytest.fixture(scope="session")
def checkpoint(nano_checkpoint: Path) -> Path:
    return nano_checkpoint


@pytest.fixture(scope="session")
def harmony(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """openai-harmony's own encoding, fed from the compressed vocabulary."""
    openai_harmony = pytest.importorskip("openai_harmony")
    folder = tmp_path_factory.mktemp("tiktoken")
    write_tiktoken(folder / "o200k_base.tiktoken")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_ENCODINGS_BASE", str(folder))
        return openai_harmony.load_harmony_encoding(openai_harmony.HarmonyEncodingName.HARMONY_GPT_OSS)
