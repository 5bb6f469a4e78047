"""Skills: arithmetic and ordering. Numbers below 1000 are one token each in o200k, so each step is one lookup."""

from __future__ import annotations

import random

from gptoss_convert.nano.render import Setting, analysis, final, user
from gptoss_convert.nano.skills.base import Draft, join_words, reason

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
    """One operation; held out by operation and operands, in every phrasing."""
    sign = rng.choice("++--*")
    if sign == "*":
        a, b = rng.randrange(13), rng.randrange(13)
    else:
        a, b = rng.randrange(100), rng.randrange(100)
    if sign == "-" and a < b:
        a, b = b, a
    text = rng.choice(_QUESTIONS).format(rng.choice(_WAYS[sign]).format(a=a, b=b))
    steps = _steps(sign, a, b)
    task = {"+": f"Add {a} and {b}.", "-": f"Subtract {b} from {a}.", "*": f"Multiply {a} by {b}."}[sign]
    thoughts = {
        "low": ", ".join(steps) + ".",
        "medium": f"{task} " + ", ".join(steps) + ".",
        "high": f"{task} First: " + ". Then: ".join(steps) + ". This is the result.",
    }
    reply = f"{a} {sign} {b} = {steps[-1].split()[-1]}"
    return Draft(f"{a}{sign}{b}", [user(text)], [analysis(thoughts[setting.effort]), final(reply)])


def _steps(sign: str, a: int, b: int) -> list[str]:
    """Steps of an operation from tables small enough to learn: ones, tens, and their sum; products are one step.

    Products have the smaller factor first, so that learning one of two swapped prompts is enough for both.
    """
    if sign == "*":
        return [f"{min(a, b)} * {max(a, b)} = {a * b}"]
    ones, tens = a % 10, a - a % 10
    if sign == "-" and ones < b % 10:
        ones, tens = ones + 10, tens - 10  # borrow
    apply = {"+": int.__add__, "-": int.__sub__}[sign]
    low, high = apply(ones, b % 10), apply(tens, b - b % 10)
    steps = [f"{ones} {sign} {b % 10} = {low}", f"{tens} {sign} {b - b % 10} = {high}"]
    return [*steps, f"{high} + {low} = {high + low}"]


def effort(rng: random.Random, setting: Setting) -> Draft:
    """Orders numbers, with reasoning as long as the effort asks for; held out by the set of numbers."""
    # from different decades, so that the tens decide the order
    numbers = [10 * decade + rng.randrange(10) for decade in rng.sample(range(10), rng.choice((2, 3, 3)))]
    said, low, high = join_words([str(n) for n in numbers]), min(numbers), max(numbers)
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
    return Draft(key, [user(text)], [*reason(setting.effort, medium, f"{medium} {steps}"), final(reply)])
