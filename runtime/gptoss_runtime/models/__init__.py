"""Models by name: aliases, a variant per target, the choice of a variant for this machine, and the download cache.

Start with ``Registry``. Importing this package is cheap: the first pull imports huggingface_hub.
"""

from gptoss_runtime.models.catalog import Catalog, Model, Published, user_file
from gptoss_runtime.models.choosing import Choice, Placement
from gptoss_runtime.models.hub import Hub
from gptoss_runtime.models.pulling import OnProgress, Progress, Record
from gptoss_runtime.models.registry import Registry, Variant

__all__ = [
    "Catalog",
    "Choice",
    "Hub",
    "Model",
    "OnProgress",
    "Placement",
    "Progress",
    "Published",
    "Record",
    "Registry",
    "Variant",
    "user_file",
]
