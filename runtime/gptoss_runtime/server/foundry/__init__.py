"""The part of Foundry Local's REST API that its clients call."""

from gptoss_runtime.server.foundry.routes import router

__all__ = ["router"]
