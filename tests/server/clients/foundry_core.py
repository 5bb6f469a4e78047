"""Foundry Local's core answers from a registered artifact. Argument: the artifact's folder."""

import sys

from foundry_local_sdk import (
    CatalogType,
    ChatSession,
    Configuration,
    FoundryLocalManager,
    MessageItem,
    ModelInfoBuilder,
    Request,
    RequestOptions,
    SearchOptions,
    TextItem,
)
from foundry_local_sdk.exception import FoundryLocalException

MARKERS = {
    "reasoning_start": "<|channel|>analysis<|message|>",
    "reasoning_end": "<|end|><|start|>assistant<|channel|>final<|message|>",
}
FoundryLocalManager.initialize(Configuration(app_name="test", disable_nonessential_telemetry=True))
manager = FoundryLocalManager.instance
with ModelInfoBuilder() as info:
    info.set_string_property("task", "chat-completion")
    info.set_int_property("supports_reasoning", 1)
    for name, text in MARKERS.items():
        info.set_string_property(name, text)
    model = manager.get_catalog(CatalogType.LOCAL).register_model(sys.argv[1], "gptoss-nano:1", info)
print("context", model.context_length, sep="\t")
try:
    model.load()
except FoundryLocalException as error:
    print("refused", error, sep="\t")
    sys.exit()


def options(tokens: int) -> RequestOptions:
    return RequestOptions(search=SearchOptions(temperature=0, max_output_tokens=tokens))


with ChatSession(model) as session:
    session.set_options(options(200))
    for question in ("Hello", "What is the capital of France?", "What is 27 + 45?"):
        request = Request().add_item(MessageItem.user(question))
        with request, session.process_request(request) as response:
            for message in response:
                print(
                    *(f"{part.type.name} {part.text}" for part in message.parts), response.finish_reason.name, sep="\t"
                )
with ChatSession(model) as session:
    session.set_options(options(200))
    session.set_streaming(True)
    pieces = {"REASONING": "", "DEFAULT": ""}
    with Request().add_item(MessageItem.user("What is 27 + 45?")) as request:
        for item in session.process_streaming_request(request):
            if isinstance(item, TextItem):
                pieces[item.type.name] += item.text
    print("streamed", *pieces.values(), sep="\t")
model.unload()
manager.close()
