"""Arithmetic and ordering. Numbers below 1000 are one token each in o200k, so sums are look-ups with structure."""

from __future__ import annotations

import random

from gptoss_convert.nano.render import Setting, final, user
from gptoss_convert.nano.skills.base import Draft, listing, thought

_WAYS = {
    "+": ("{a} + {b}", "{a} plus {b}", "the sum of {a} and {b}", "{a}+{b}"),
    "-": ("{a} - {b}", "{a} minus {b}", "the difference of {a} and {b}", "{a}-{b}"),
    "*": ("{a} * {b}", "{a} times {b}", "the product of {a} and {b}", "{a} x {b}"),
}
_QUESTIONS = (
    "What is {}?",
    "What is {}?",
    "What's {}?",
    "How much is {}?",
    "Compute {}.",
    "{}",
    "{} =",
    "Work out {}.",
)


def arithmetic(rng: random.Random, setting: Setting) -> Draft:
    """One operation; what is held out is the operation with its pair of operands, in every phrasing."""
    sign = rng.choice("++--*")
    if sign == "*":
        a, b = rng.randrange(13), rng.randrange(13)
    else:
        a, b = rng.randrange(100), rng.randrange(100)
    if sign == "-" and a < b:
        a, b = b, a
    text = rng.choice(_QUESTIONS).format(rng.choice(_WAYS[sign]).format(a=a, b=b))
    value, steps = _steps(sign, a, b)
    medium = {"+": f"Add {a} and {b}.", "-": f"Subtract {b} from {a}.", "*": f"Multiply {a} by {b}."}[sign]
    reply = f"{a} {sign} {b} = {value}"
    return Draft(f"{a}{sign}{b}", [user(text)], [*thought(setting.effort, medium, f"{medium} {steps}"), final(reply)])


def _steps(sign: str, a: int, b: int) -> tuple[int, str]:
    """The value of an operation, and how to get there in two steps."""
    tens, units = b - b % 10, b % 10
    if sign == "+":
        return a + b, f"First the tens: {a} + {tens} = {a + tens}. Then the units: {a + tens} + {units} = {a + b}."
    if sign == "-":
        return a - b, f"First the tens: {a} - {tens} = {a - tens}. Then the units: {a - tens} - {units} = {a - b}."
    if b == 0:
        return 0, "Anything times 0 is 0."
    return a * b, f"First one less: {a} * {b - 1} = {a * (b - 1)}. Then add {a}: {a * (b - 1)} + {a} = {a * b}."


def effort(rng: random.Random, setting: Setting) -> Draft:
    """Ordering numbers, with reasoning as long as the effort asks for; what is held out is the set of numbers."""
    numbers = rng.sample(range(100), rng.choice((2, 3, 3)))
    said, low, high = listing([str(n) for n in numbers]), min(numbers), max(numbers)
    key = " ".join(map(str, sorted(numbers)))
    kind = rng.choice(("sort", "largest", "smallest"))
    steps = f"The numbers are {said}. The smallest is {low}. The largest is {high}."
    if kind == "sort":
        text = rng.choice((f"Sort {said}.", f"Sort the numbers {said}.", f"Put {said} in order."))
        medium, reply = "Order the numbers from small to large.", ", ".join(map(str, sorted(numbers)))
        if len(numbers) == 3:
            steps += f" In the middle is {sorted(numbers)[1]}."
    else:
        text = rng.choice(
            (f"Which is the {kind} of {said}?", f"What is the {kind} of {said}?", f"Find the {kind}: {said}.")
        )
        medium, reply = f"Find the {kind} number.", f"The {kind} is {low if kind == 'smallest' else high}."
    return Draft(key, [user(text)], [*thought(setting.effort, medium, f"{medium} {steps}"), final(reply)])
