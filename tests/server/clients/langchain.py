"""langchain-openai: invoke, stream, tools, structured output. Arguments: URL, model. Run by test_clients.py."""

import sys

from langchain_openai import ChatOpenAI
from pydantic import BaseModel


class Colour(BaseModel):
    """Whether a colour is dark."""

    dark: bool


def get_weather(city: str) -> str:
    """Current weather in a city."""
    return city


url, model = sys.argv[1:]
for responses in (False, True):
    chat = ChatOpenAI(
        base_url=f"{url}/v1", api_key="unused", model=model, temperature=0, max_tokens=300, use_responses_api=responses
    )
    print("invoke", chat.invoke("What is 27 + 45?").text, sep="\t")
    print("stream", "".join(chunk.text for chunk in chat.stream("What is 27 + 45?")), sep="\t")
    print(
        "tools", chat.bind_tools([get_weather]).invoke("What's the weather in Paris?").tool_calls[0]["args"], sep="\t"
    )
    print("parsed", type(chat.with_structured_output(Colour).invoke("Is black dark?")).__name__, sep="\t")
