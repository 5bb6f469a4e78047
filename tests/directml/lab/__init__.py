"""The real Windows builds of onnxruntime and DirectML on Linux; see README.md."""
