"""Runs graphs on DirectML, with the converter's session.py, which is mounted beside it.

python graphs.py jobs.json        a list of {"model", "token_ids", "pieces", "out": logits.npy, "max_length"}
"""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).parents[1] / "parity"))
from session import Session  # type: ignore[import-not-found]

load = functools.lru_cache(maxsize=1)(Session)  # one graph after the other, each with several sequences

for job in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
    run = load(Path(job["model"]), "directml").run
    rows = run(job["token_ids"], job["pieces"], ["logits"], max_length=job["max_length"])
    np.save(job["out"], np.concatenate([logits[0] for (logits,) in rows]).astype(np.float32))
    print("done", job["out"], flush=True)
