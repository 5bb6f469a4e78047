"""Turns off the telemetry of the libraries that gptoss loads. Both packages call it before they import anything else.

onnxruntime 1.32 and onnxruntime-genai 0.18 look up Microsoft's telemetry host and keep a device id in the user's cache
from the moment their libraries load; their own ``disable_telemetry_events`` comes too late. All of these variables are
read from the environment, so child processes inherit them.
"""

from __future__ import annotations

import os

VARIABLES = {
    "ORT_DISABLE_TELEMETRY": "1",  # onnxruntime and onnxruntime-genai
    "OLIVE_DISABLE_TELEMETRY": "1",  # olive-ai
    "HF_HUB_DISABLE_TELEMETRY": "1",  # huggingface-hub and transformers: a session id in the user agent
}


def disable_telemetry() -> None:
    """Sets the variables, whatever they were: that nothing is sent is a promise, not a default."""
    os.environ.update(VARIABLES)
