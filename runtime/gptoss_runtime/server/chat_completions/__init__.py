"""OpenAI's Chat Completions API."""

from gptoss_runtime.server.chat_completions.routes import router

__all__ = ["router"]
