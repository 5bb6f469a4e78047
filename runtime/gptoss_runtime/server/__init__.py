"""The HTTP server: OpenAI's APIs, Foundry Local's routes and a web page, over models that are loaded on demand.

The core lies flat in this folder and knows no dialect: ``app`` (puts everything together), ``run``, ``settings``,
``security``, ``request_body``, ``json_response``, ``sse``, ``connection``, ``errors``, ``metrics``, ``health``, and the
way from a request to an answer: ``services`` → ``model_host`` → ``prompt`` → ``turn`` → ``turn_events``.

Each dialect is a folder that translates its requests to a ``TurnRequest`` and ``TurnEvent``s to its answers:
``chat_completions`` and ``responses`` (which share ``openai``) and ``foundry``. ``page`` is the web page. A dialect
imports no other dialect, and only ``app`` imports dialects.

Needs the extra ``server``. Knows nothing of how tokens are chosen, or of onnxruntime-genai.
"""
