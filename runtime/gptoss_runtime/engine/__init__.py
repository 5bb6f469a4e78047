"""Engines: token ids in, token ids out. The interface, its implementations, sampling and grammars."""
