"""OpenAI's Chat Completions API, translated to and from turns."""

from gptoss_runtime.server.chat_completions.routes import router

__all__ = ["router"]
