"""The HTTP server: OpenAI's Chat Completions and Responses, and Foundry Local's own routes, over loaded models.

``app.create_app`` builds it from ``Settings`` and a ``ModelHost``. Needs the extra ``server``. Knows HTTP and what
OpenAI's clients send; knows nothing of token choice, harmony's tokens or onnxruntime-genai.
"""
