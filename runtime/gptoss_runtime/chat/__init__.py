"""Conversations on top of an engine: messages, tools and reasoning, rendered and parsed in the harmony format."""
