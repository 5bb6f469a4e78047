"""The tools that nano is trained with: families of functions, each with several names, keys and descriptions.

A family declares its tool and draws requests: the user's text, the arguments, a result and the report on it. Names and
keys vary, so the model has to copy them from the declaration.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from gptoss_convert.nano.render import Parameter, Tool
from gptoss_convert.nano.skills.structured import to_compact_json
from gptoss_convert.nano.skills.words import CITIES, CONDITIONS, DAYS, EVENTS, LANGUAGES, NAMES, ROOMS, WORDS


@dataclass(frozen=True)
class Request:
    """One use of a tool.

    Attributes:
        text: what the user says.
        arguments: values in the order of the tool's parameters; None for an omitted optional one.
        returned: the tool's result.
        report: the answer that uses the result.
    """

    text: str
    arguments: tuple[str | int | None, ...]
    returned: str
    report: str


@dataclass(frozen=True)
class Family:
    """Tools that do the same under different names.

    Attributes:
        names: of the function.
        descriptions: of the function.
        keys: for each parameter, its possible names.
        ask: draws a request.
        enums: allowed values, by the position of the parameter.
        integers: positions of integer parameters.
        optional: positions of optional parameters.
    """

    names: tuple[str, ...]
    descriptions: tuple[str, ...]
    keys: tuple[tuple[str, ...], ...]
    ask: Callable[[random.Random], Request]
    enums: dict[int, tuple[str, ...]]
    integers: tuple[int, ...] = ()
    optional: tuple[int, ...] = ()

    def declare(self, rng: random.Random) -> Tool:
        """A tool of this family."""
        described = rng.random() < 0.4
        parameters = tuple(
            Parameter(
                name=rng.choice(names),
                type="integer" if at in self.integers else "string",
                description=f"The {names[0]}." if described else "",
                enum=self.enums.get(at, ()),
                required=at not in self.optional,
            )
            for at, names in enumerate(self.keys)
        )
        return Tool(rng.choice(self.names), rng.choice(self.descriptions), parameters)


def phrase(rng: random.Random, low: int = 1, high: int = 4) -> str:
    """A few plain words."""
    return " ".join(rng.sample(WORDS, rng.randint(low, high)))


def _weather(rng: random.Random) -> Request:
    city, degrees, condition = rng.choice(CITIES), rng.randint(0, 35), rng.choice(CONDITIONS)
    unit = rng.choice((None, None, "celsius", "fahrenheit"))
    text = rng.choice(
        (
            f"What's the weather in {city}",
            f"What is the weather like in {city}",
            f"How is the weather in {city}",
            f"What's the weather in {city} today",
            f"How warm is it in {city}",
            f"Tell me the weather in {city}",
        )
    )
    text += f" in {unit}?" if unit else "?"
    returned = to_compact_json({"temperature": degrees, "condition": condition})
    return Request(text, (city, unit), returned, f"It is {degrees} degrees and {condition} in {city}.")


def _time(rng: random.Random) -> Request:
    city, now = rng.choice(CITIES), _clock(rng)
    text = rng.choice((f"What time is it in {city}?", f"What is the time in {city}?", f"Tell me the time in {city}."))
    return Request(text, (city,), to_compact_json({"time": now}), f"It is {now} in {city}.")


def _event(rng: random.Random) -> Request:
    title, day, at = rng.choice(EVENTS), rng.choice(DAYS), _clock(rng)
    text = rng.choice(
        (
            f"Add a {title} on {day} at {at}.",
            f"Schedule a {title} for {day} at {at}.",
            f"Put a {title} in my calendar on {day} at {at}.",
            f"On {day} at {at} I have a {title}, add it.",
        )
    )
    return Request(text, (title, day, at), _ok(rng), f"The {title} is on {day} at {at}.")


def _message(rng: random.Random) -> Request:
    to, words = rng.choice(NAMES), phrase(rng, 2, 4)
    text = rng.choice((f"Send a message to {to}: {words}", f"Tell {to}: {words}", f"Message {to}: {words}"))
    return Request(text, (to, words), _ok(rng), f"Your message to {to} was sent.")


def _search(rng: random.Random) -> Request:
    query, found = phrase(rng, 1, 3), phrase(rng, 2, 4)
    text = rng.choice((f"Search for {query}.", f"Find {query} on the web.", f"Look up {query}."))
    return Request(text, (query,), to_compact_json({"result": found}), f"I found this: {found}.")


def _calculate(rng: random.Random) -> Request:
    expression = f"{rng.randint(100, 999)} {rng.choice('+-*')} {rng.randint(100, 999)}"
    value = rng.randint(1000, 999999)
    text = rng.choice((f"Calculate {expression}.", f"Use the calculator for {expression}.", f"Evaluate {expression}."))
    return Request(text, (expression,), to_compact_json({"result": value}), f"The result is {value}.")


def _timer(rng: random.Random) -> Request:
    minutes = rng.randint(2, 99)
    text = rng.choice((f"Set a timer for {minutes} minutes.", f"Start a {minutes} minute timer."))
    return Request(text, (minutes,), _ok(rng), f"The timer is set for {minutes} minutes.")


def _lights(rng: random.Random) -> Request:
    room, state = rng.choice(ROOMS), rng.choice(("on", "off"))
    text = rng.choice(
        (
            f"Turn {state} the lights in the {room}.",
            f"Switch the {room} lights {state}.",
            f"Lights {state} in the {room}!",
        )
    )
    return Request(text, (room, state), _ok(rng), f"The lights in the {room} are {state}.")


def _translate(rng: random.Random) -> Request:
    words, language, out = phrase(rng, 1, 3), rng.choice(LANGUAGES), phrase(rng, 1, 3)
    text = rng.choice((f"Translate {words} into {language}.", f"How do you say {words} in {language}?"))
    return Request(text, (words, language), to_compact_json({"translation": out}), f"In {language} it is: {out}.")


def _remind(rng: random.Random) -> Request:
    words, day = phrase(rng, 2, 3), rng.choice(DAYS)
    text = rng.choice((f"Remind me to {words} on {day}.", f"On {day}, remind me to {words}."))
    return Request(text, (words, day), _ok(rng), f"I will remind you to {words} on {day}.")


def _clock(rng: random.Random) -> str:
    return f"{rng.randint(0, 23):02d}:{rng.choice(('00', '15', '30', '45'))}"


def _ok(rng: random.Random) -> str:
    return rng.choice(('{"status":"ok"}', '{"ok":true}', '{"status":"done"}', "ok", "done"))


FAMILIES: tuple[Family, ...] = (
    Family(
        ("get_weather", "current_weather"),
        ("Gets the weather.", "Get the current weather for a city.", "Returns the weather in a given location."),
        (("city", "location"), ("unit",)),
        _weather,
        {1: ("celsius", "fahrenheit")},
        optional=(1,),
    ),
    Family(
        ("get_time", "local_time"),
        ("Gets the local time.", "Get the current time in a city.", "Returns the time in a given location."),
        (("city", "location"),),
        _time,
        {},
    ),
    Family(
        ("add_event", "create_event"),
        ("Adds an event to the calendar.", "Create a calendar event.", "Schedules an event."),
        (("title", "event"), ("day", "date"), ("time", "start")),
        _event,
        {},
    ),
    Family(
        ("send_message", "notify"),
        ("Sends a message.", "Send a text message to a person.", "Sends a text to a contact."),
        (("to", "recipient"), ("text", "message")),
        _message,
        {},
    ),
    Family(
        ("search", "web_search"),
        ("Searches the web.", "Search the web for a query.", "Looks something up."),
        (("query", "q"),),
        _search,
        {},
    ),
    Family(
        ("calculator", "evaluate"),
        ("Evaluates an expression.", "A calculator.", "Calculate the value of an expression."),
        (("expression", "formula"),),
        _calculate,
        {},
    ),
    Family(
        ("set_timer", "start_timer"),
        ("Sets a timer.", "Start a timer for some minutes."),
        (("minutes", "duration"),),
        _timer,
        {},
        integers=(0,),
    ),
    Family(
        ("set_lights", "switch_lights"),
        ("Switches lights.", "Turn the lights in a room on or off."),
        (("room", "area"), ("state", "power")),
        _lights,
        {1: ("on", "off")},
    ),
    Family(
        ("translate", "translate_text"),
        ("Translates text.", "Translate a text into another language."),
        (("text", "phrase"), ("language", "target")),
        _translate,
        {},
    ),
    Family(
        ("add_reminder", "remind"),
        ("Adds a reminder.", "Create a reminder for a day."),
        (("text", "task"), ("day", "when")),
        _remind,
        {},
    ),
)
OF_NAME: dict[str, Family] = {name: family for family in FAMILIES for name in family.names}
