"""The conversion stage: a gpt-oss checkpoint in, an onnxruntime-genai folder out. Heavy dependencies live only here."""

import gptoss_runtime as gptoss_runtime  # turns telemetry off before onnxruntime and Olive are imported
