"""The server's web page: its static files, and the routes that serve them."""

from gptoss_runtime.server.page.routes import router

__all__ = ["router"]
