"""gpt-oss on onnxruntime-genai: load an artifact, generate token ids, or hold a conversation.

``Engine`` takes and gives token ids; ``Chat`` puts text, tools and reasoning on top. Importing this package is cheap:
onnxruntime-genai and openai-harmony are imported when something is loaded.
"""

from gptoss_runtime.engine import Engine, FinishReason, Generation, GenerationResult, ModelInfo, Timings, Usage
from gptoss_runtime.errors import (
    ArtifactError,
    BackendError,
    BackendUnavailable,
    ContextOverflow,
    GptOssError,
    InvalidRequest,
    ResourceError,
)
from gptoss_runtime.options import GenerationOptions

__all__ = [
    "ArtifactError",
    "BackendError",
    "BackendUnavailable",
    "ContextOverflow",
    "Engine",
    "FinishReason",
    "Generation",
    "GenerationOptions",
    "GenerationResult",
    "GptOssError",
    "InvalidRequest",
    "ModelInfo",
    "ResourceError",
    "Timings",
    "Usage",
]
