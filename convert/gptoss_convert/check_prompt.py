"""The fixed prompt of every conversion's first run and of every device check: the same ids for the same model.

It is a Harmony conversation, because trained models have their largest activations at the first token and at
delimiters. It is several windows long and holds English, code, JSON, numbers and other scripts. A model with another
vocabulary than o200k_harmony gets random ids.
"""

from __future__ import annotations

import random

from gptoss_convert.config import GptOssConfig
from gptoss_convert.nano.vocabulary import SPECIAL, tokenizer
from gptoss_runtime.harmony_tokens import VOCAB_SIZE

LENGTH = 512
_STEPS = 8  # tokens at the end that are decoded one by one
_SYSTEM = """You are ChatGPT, a large language model trained by OpenAI.
Knowledge cutoff: 2024-06
Current date: 2025-08-05

Reasoning: medium

# Valid channels: analysis, commentary, final. Channel must be included for every message.
Calls to these tools must go to the commentary channel: 'functions'."""
_DEVELOPER = """# Instructions

Answer in short sentences. Show code where it helps.

# Tools

## functions

namespace functions {

// Gets the current weather of a city.
type get_weather = (_: {
// The city, such as Paris
city: string,
unit?: "celsius" | "fahrenheit", // default: celsius
}) => any;

} // namespace functions"""
_QUESTION = "Is it warm in Oslo? Then write a Python function that converts its temperature to Fahrenheit, and test it."
_ANALYSIS = "The user asks for the weather in Oslo and for a function. I call get_weather first, then I write the code."
_ARGUMENTS = '{"city":"Oslo","unit":"celsius"}'
_RESULT = '{"temperature":-3.5,"condition":"light snow","wind_km_h":12,"measured":"2025-08-05T06:00:00Z"}'
_ANSWER = """It is **-3.5 °C** with light snow in Oslo: not warm.

```python
def to_fahrenheit(celsius: float) -> float:
    \"\"\"Degrees Fahrenheit of degrees Celsius.\"\"\"
    return celsius * 9 / 5 + 32


assert to_fahrenheit(0) == 32
assert abs(to_fahrenheit(-3.5) - 25.7) < 1e-9
```

| °C | °F |
|---:|---:|
| -40 | -40 |
| 0 | 32 |
| 37 | 98.6 |

Auf Deutsch: Es ist kalt, minus dreieinhalb Grad. En français : il fait froid.
日本語:オスロは寒いです。По-русски: холодно. ❄️"""
_NEXT = "Thanks! List the first ten primes, and the sum of their squares: 2, 3, 5, 7, 11, 13, 17, 19, 23, 29."
_REASON = "4 + 9 + 25 + 49 + 121 + 169 + 289 + 361 + 529 + 841 = 2397. So the sum is 2397."


def check_prompt(config: GptOssConfig) -> list[int]:
    """The prompt's token ids: ``LENGTH`` of them, fewer if the context is shorter, and at least one."""
    length = max(1, min(LENGTH, config.max_position_embeddings - 1))
    if config.vocab_size != VOCAB_SIZE:
        rng = random.Random("check prompt")
        return [rng.randrange(config.vocab_size) for _ in range(length)]
    ids = [
        *_message("system", _SYSTEM),
        *_message("developer", _DEVELOPER),
        *_message("user", _QUESTION),
        *_message("assistant", _ANALYSIS, channel="analysis"),
        *_message("assistant", _ARGUMENTS, channel="commentary to=functions.get_weather", end="<|call|>"),
        *_message("functions.get_weather to=assistant", _RESULT, channel="commentary"),
        *_message("assistant", _ANSWER, channel="final"),
        *_message("user", _NEXT),
        *_message("assistant", _REASON, channel="analysis"),
        *_message("assistant", _NEXT, channel="final"),
    ]
    return ids[:length]


def check_positions(length: int) -> list[int]:
    """Positions whose logits are compared: the ends of a few shorter prompts, and each of the last tokens."""
    ends = {length // 16, length // 4, length // 2, length - _STEPS}
    return sorted({max(0, end - 1) for end in ends} | set(range(max(0, length - _STEPS), length)))


def _message(author: str, text: str, *, channel: str | None = None, end: str = "<|end|>") -> list[int]:
    ids = [SPECIAL["<|start|>"], *_encode(author)]
    if channel is not None:
        ids += [SPECIAL["<|channel|>"], *_encode(channel)]
    return [*ids, SPECIAL["<|message|>"], *_encode(text), SPECIAL[end]]


def _encode(text: str) -> list[int]:
    ids: list[int] = tokenizer().encode(text, add_special_tokens=False).ids
    return ids
