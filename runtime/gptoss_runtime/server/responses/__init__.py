"""OpenAI's Responses API."""

from gptoss_runtime.server.responses.routes import router

__all__ = ["router"]
