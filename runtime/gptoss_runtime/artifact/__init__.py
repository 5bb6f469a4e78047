"""Artifact folders: what they contain, and the checks that a folder must pass before anything in it is loaded."""
