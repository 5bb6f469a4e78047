"""gpt-oss on onnxruntime-genai: load an artifact, generate token ids, or hold a conversation.

``Engine`` takes and gives token ids; ``Chat`` puts text, tools and reasoning on top. Importing this package is cheap:
onnxruntime-genai and openai-harmony are imported when something is loaded.
"""

from gptoss_runtime.chat import Chat, Reply
from gptoss_runtime.conversation import (
    JSON_OBJECT,
    ContentDelta,
    Event,
    Finish,
    Message,
    MessageEnd,
    ReasoningDelta,
    ResponseFormat,
    Tool,
    ToolCall,
    ToolCallDelta,
    ToolResult,
)
from gptoss_runtime.engine import (
    Engine,
    FinishReason,
    Generation,
    GenerationResult,
    ModelInfo,
    Timings,
    TokenLogprobs,
    Usage,
)
from gptoss_runtime.errors import (
    ArtifactError,
    BackendError,
    BackendUnavailable,
    ContextOverflow,
    DeviceError,
    DeviceLost,
    DriverTooOld,
    EngineDied,
    GptOssError,
    HubError,
    InvalidRequest,
    ModelNotFound,
    NoAdapter,
    NumericalError,
    Overloaded,
    ResourceError,
)
from gptoss_runtime.formats import turn_grammar
from gptoss_runtime.options import GenerationOptions
from gptoss_runtime.stops import StopStrings

__all__ = [
    "JSON_OBJECT",
    "ArtifactError",
    "BackendError",
    "BackendUnavailable",
    "Chat",
    "ContentDelta",
    "ContextOverflow",
    "DeviceError",
    "DeviceLost",
    "DriverTooOld",
    "Engine",
    "EngineDied",
    "Event",
    "Finish",
    "FinishReason",
    "Generation",
    "GenerationOptions",
    "GenerationResult",
    "GptOssError",
    "HubError",
    "InvalidRequest",
    "Message",
    "MessageEnd",
    "ModelInfo",
    "ModelNotFound",
    "NoAdapter",
    "NumericalError",
    "Overloaded",
    "ReasoningDelta",
    "Reply",
    "ResourceError",
    "ResponseFormat",
    "StopStrings",
    "Timings",
    "TokenLogprobs",
    "Tool",
    "ToolCall",
    "ToolCallDelta",
    "ToolResult",
    "Usage",
    "turn_grammar",
]
