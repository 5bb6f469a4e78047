"""Models by name: aliases, variants for each target, the choice by hardware, and the cache that pulls fill.

``Registry`` is the door. Importing this is cheap: huggingface_hub is imported by the first pull.
"""

from gptoss_runtime.models.catalogue import Catalogue, Model, Published, user_file
from gptoss_runtime.models.choosing import Choice, Place
from gptoss_runtime.models.hub import Hub
from gptoss_runtime.models.pulling import OnProgress, Progress, Record
from gptoss_runtime.models.registry import Registry, Variant

__all__ = [
    "Catalogue",
    "Choice",
    "Hub",
    "Model",
    "OnProgress",
    "Place",
    "Progress",
    "Published",
    "Record",
    "Registry",
    "Variant",
    "user_file",
]
