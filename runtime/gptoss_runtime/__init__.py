"""gpt-oss on onnxruntime-genai: load an artifact, generate token ids, or hold a conversation.

``load_engine`` gives an ``Engine``, which takes and gives token ids; ``Chat`` adds text, tools and reasoning. This
import is cheap: onnxruntime-genai and openai-harmony are imported when something is loaded.
"""

from gptoss_runtime.chat.chat import Chat, Reply
from gptoss_runtime.chat.conversation import (
    JSON_OBJECT,
    ChatEvent,
    ContentDelta,
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
from gptoss_runtime.chat.stops import StopStrings
from gptoss_runtime.chat.turn_grammar import build_turn_grammar
from gptoss_runtime.engine.base import Engine, Generation
from gptoss_runtime.engine.loading import load_engine
from gptoss_runtime.engine.options import GenerationOptions
from gptoss_runtime.engine.results import FinishReason, GenerationResult, ModelInfo, Timings, TokenLogprobs, Usage
from gptoss_runtime.engine_process.engine import ProcessEngine
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
from gptoss_runtime.privacy import disable_telemetry

disable_telemetry()  # before onnxruntime is imported, which no import above does

__all__ = [
    "JSON_OBJECT",
    "ArtifactError",
    "BackendError",
    "BackendUnavailable",
    "Chat",
    "ChatEvent",
    "ContentDelta",
    "ContextOverflow",
    "DeviceError",
    "DeviceLost",
    "DriverTooOld",
    "Engine",
    "EngineDied",
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
    "ProcessEngine",
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
    "build_turn_grammar",
    "load_engine",
]
