"""openai-agents with a tool, over both APIs. Arguments: the server's URL, the model. Run by test_clients.py."""

import asyncio
import sys

from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI

called = []


@function_tool
def get_weather(city: str) -> str:
    """Current weather in a city."""
    called.append(city)
    return '{"temperature":21,"condition":"sunny"}'


async def main(url: str, model: str) -> None:
    """Asks twice: whole and streamed."""
    client = AsyncOpenAI(base_url=f"{url}/v1", api_key="unused")
    for kind in (OpenAIResponsesModel, OpenAIChatCompletionsModel):
        agent = Agent(
            name="assistant",
            model=kind(model=model, openai_client=client),
            tools=[get_weather],
            model_settings=ModelSettings(temperature=0, max_tokens=300),
        )
        done = await Runner.run(agent, "What's the weather in Paris?")
        print(kind.__name__, done.final_output, sep="\t")
        streamed = Runner.run_streamed(agent, "What's the weather in Paris?")
        async for _ in streamed.stream_events():
            pass
        print(kind.__name__, streamed.final_output, sep="\t")
    print("called", *called, sep="\t")


set_tracing_disabled(True)
asyncio.run(main(*sys.argv[1:]))
