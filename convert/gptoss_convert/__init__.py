"""The conversion stage: a gpt-oss checkpoint in, an onnxruntime-genai folder out. Heavy dependencies live only here."""
