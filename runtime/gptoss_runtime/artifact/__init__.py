"""Artifact folders: what they contain, and the checks that a folder passes before anything of it is loaded."""
