"""OpenAI's Responses API, translated to and from turns."""

from gptoss_runtime.server.responses.routes import router

__all__ = ["router"]
