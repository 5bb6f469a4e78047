"""Skill: answers in JSON, with values copied from the prompt, recalled or computed."""

from __future__ import annotations

import json
import random

from gptoss_convert.nano.render import Setting, final, user
from gptoss_convert.nano.skills.base import Draft, join_words, reason
from gptoss_convert.nano.skills.words import CITIES, COLOURS, COUNTRIES, JOBS, NAMES

Value = str | int


def to_compact_json(value: object) -> str:
    """JSON without spaces, as nano writes it."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def json_answers(rng: random.Random, setting: Setting) -> Draft:
    """A JSON object with the requested keys; held out by keys and values."""
    source, values = rng.choice((_person, _person, _country, _sums))(rng)
    keys = rng.sample(sorted(values), rng.randint(min(2, len(values)), len(values)))
    wish = rng.choice(
        (
            "Answer in JSON with the keys {}.",
            "Answer in JSON with keys {}.",
            "Return a JSON object with the keys {}.",
            "Give me JSON with {}.",
            "Reply as JSON with the keys {}.",
        )
    ).format(join_words(keys))
    text = f"{source} {wish}" if rng.random() < 0.7 else f"{wish} {source}"
    answer = {key: values[key] for key in keys}
    high = f"The user wants JSON with the keys {join_words(keys)}. " + " ".join(f"{k}: {v}." for k, v in answer.items())
    key = f"{source} {sorted(keys)}"
    return Draft(key, [user(text)], [*reason(setting.effort, "Reply with JSON.", high), final(to_compact_json(answer))])


def _person(rng: random.Random) -> tuple[str, dict[str, Value]]:
    name, age, city = rng.choice(NAMES), rng.randint(18, 99), rng.choice(CITIES)
    job, colour = rng.choice(JOBS), rng.choice(COLOURS)
    values: dict[str, Value] = {"name": name, "age": age, "city": city}
    source = rng.choice((f"{name} is {age} years old and lives in {city}.", f"{name} from {city} is {age}."))
    if rng.random() < 0.4:
        values["job"] = job
        source += f" The job is {job}."
    if rng.random() < 0.4:
        values["color"] = colour
        source += f" The favorite color is {colour}."
    return source, values


def _country(rng: random.Random) -> tuple[str, dict[str, Value]]:
    country = rng.choice(tuple(COUNTRIES))
    capital, continent, language = COUNTRIES[country]
    source = rng.choice((f"Think of {country}.", f"Describe {country}.", f"Tell me about {country}."))
    return source, {"country": country, "capital": capital, "continent": continent, "language": language}


def _sums(rng: random.Random) -> tuple[str, dict[str, Value]]:
    a, b = sorted((rng.randint(0, 12), rng.randint(0, 12)), reverse=True)
    source = rng.choice((f"Take {a} and {b}.", f"The numbers are {a} and {b}.", f"Use {a} and {b}."))
    return source, {"sum": a + b, "difference": a - b, "product": a * b}
