"""Skills: small talk, facts, and conversations that refer to earlier turns."""

from __future__ import annotations

import random

from gptoss_convert.nano.render import Message, Setting, final, user
from gptoss_convert.nano.skills.base import Draft, reason
from gptoss_convert.nano.skills.words import (
    ANIMALS,
    CITIES,
    COLOURS,
    COUNTRIES,
    DAYS,
    JOBS,
    MONTHS,
    NAMES,
    OPPOSITES,
    THING_COLOURS,
    WORDS,
)

_OPENERS = ("hello", "hi", "hey", "good morning", "good evening", "greetings", "hello there", "hi there", "hey there")
# topic: (phrasings, description, answer)
_SMALL_TALK: dict[str, tuple[tuple[str, ...], str, str]] = {
    "greet": (_OPENERS, "a greeting", "Hello! How can I help you today?"),
    "how": (
        ("how are you", "how are you today", "how do you do", "how is it going", "are you well", "how are things"),
        "a polite question",
        "I am doing well, thank you! How can I help you?",
    ),
    "who": (
        (
            "who are you",
            "what are you",
            "what is your name",
            "tell me about yourself",
            "introduce yourself",
            "who is this",
        ),
        "a question about me",
        "I am nano, a very small gpt-oss model.",
    ),
    "can": (
        (
            "what can you do",
            "how can you help me",
            "what do you know",
            "help",
            "can you help me",
            "what are your skills",
        ),
        "a question about my skills",
        "I can do small sums, recall a few facts, write JSON and call tools.",
    ),
    "thanks": (
        ("thanks", "thank you", "thank you very much", "thanks a lot", "many thanks", "great, thanks"),
        "thanks",
        "You are welcome!",
    ),
    "bye": (
        ("bye", "goodbye", "good night", "see you", "see you soon", "bye bye", "see you tomorrow"),
        "a farewell",
        "Goodbye! Have a nice day.",
    ),
    "joke": (
        ("tell me a joke", "make me laugh", "do you know a joke", "say something funny", "a joke please"),
        "a wish for a joke",
        "Why was six afraid of seven? Because seven eight nine!",
    ),
}
_BEYOND = (
    *("Write a poem about {}.", "Explain {} to me.", "What do you think about {}?", "Tell me a story about {}."),
    *("Who invented {}?", "Why is {} important?", "Summarize {}.", "Give me advice on {}."),
)


def greetings(rng: random.Random, setting: Setting) -> Draft:
    """Small talk, and sometimes a request that nano cannot fulfil and declines."""
    if rng.random() < 0.15:
        template, subject = rng.choice(_BEYOND), " ".join(rng.sample(WORDS, rng.randint(1, 2)))
        text = template.format(subject)
        high = "The user asks for something that a very small model cannot do. I should say so."
        reply = "Sorry, I am too small a model for that."
        return Draft(text, [user(text)], [*reason(setting.effort, "This is beyond me.", high), final(reply)])
    ways, what, reply = _SMALL_TALK[rng.choice(tuple(_SMALL_TALK))]
    text = rng.choice(ways)
    asks = reply.startswith("I")
    if asks and rng.random() < 0.3:
        text = f"{rng.choice(_OPENERS)}, {text}"
    if rng.random() < 0.2 and not text.startswith(("great", "a joke")):
        text += rng.choice((" nano", " friend", " my friend", " please" if asks else " again"))
    text = rng.choice((text, text.capitalize())) + rng.choice(("", "?", " ?") if asks else ("", ".", "!"))
    high = f"The user says something. This is {what}. I should reply in a friendly way."
    return Draft(text, [user(text)], [*reason(setting.effort, f"This is {what}.", high), final(reply)])


def _draw_fact(rng: random.Random) -> tuple[str, tuple[str, ...], str]:
    """Draws a fact: what is asked for, special phrasings of the question, the answer."""
    kind = rng.choice(("capital", "capital", "country", "continent", "language", "opposite", "colour", "day", "month"))
    country = rng.choice(tuple(COUNTRIES))
    capital, continent, language = COUNTRIES[country]
    ways: tuple[str, ...]
    if kind == "capital":
        asked = f"the capital of {country}"
        ways = (f"Which city is {asked}?", f"Name {asked}.", f"What city is {asked}?", f"What is {country}'s capital?")
        return asked, ways, f"The capital of {country} is {capital}."
    if kind == "country":
        asked = f"the country whose capital is {capital}"
        ways = (f"Which country has the capital {capital}?", f"{capital} is the capital of which country?")
        return asked, ways, f"{capital} is the capital of {country}."
    if kind == "continent":
        asked = f"the continent of {country}"
        ways = (f"On which continent is {country}?", f"Which continent is {country} in?", f"Where is {country}?")
        return asked, ways, f"{country} is in {continent}."
    if kind == "language":
        asked = f"the language of {country}"
        ways = (f"What language is spoken in {country}?", f"Which language do people speak in {country}?")
        return asked, ways, f"People in {country} speak {language}."
    if kind == "opposite":
        word, other = rng.choice(tuple(OPPOSITES.items()))
        word, other = rng.choice(((word, other), (other, word)))
        asked = f"the opposite of {word}"
        ways = (f"What's the opposite of {word}?", f"Which word is {asked}?", f"Give me {asked}.")
        return asked, ways, f"The opposite of {word} is {other}."
    if kind == "colour":
        thing, colour = rng.choice(tuple(THING_COLOURS.items()))
        asked = f"the color of {thing}"
        ways = (f"What color is {thing}?", f"Which color does {thing} have?", f"What color does {thing} have?")
        return asked, ways, f"The color of {thing} is {colour}."
    names = DAYS if kind == "day" else MONTHS
    at, (word, step) = rng.randrange(len(names)), rng.choice((("after", 1), ("before", -1)))
    asked = f"the {kind} {word} {names[at]}"
    ways = (f"Which {kind} comes {word} {names[at]}?", f"What {kind} is {word} {names[at]}?", f"Name {asked}.")
    return asked, ways, f"The {kind} {word} {names[at]} is {names[(at + step) % len(names)]}."


def facts(rng: random.Random, setting: Setting) -> Draft:
    """A fact in one of several phrasings; held out by fact and phrasing."""
    asked, ways, reply = _draw_fact(rng)
    general = (
        f"What is {asked}?",
        f"Tell me {asked}.",
        f"Do you know {asked}?",
        f"what is {asked}",
        f"I need {asked}.",
    )
    text = rng.choice((*general, *ways))
    high = f"The user asks for {asked}. This is a fact that I know. {reply}"
    return Draft(text, [user(text)], [*reason(setting.effort, f"Recall {asked}.", high), final(reply)])


def conversation(rng: random.Random, setting: Setting) -> Draft:
    """Recalls something from an earlier turn, after zero to two unrelated turns."""
    topic, value = rng.choice(
        (
            ("name", rng.choice(NAMES)),
            ("city", rng.choice(CITIES)),
            ("job", rng.choice(JOBS)),
            ("favorite color", rng.choice(COLOURS)),
            ("favorite animal", rng.choice(ANIMALS)),
            ("favorite day", rng.choice(DAYS)),
            ("favorite number", str(rng.randrange(100))),
        )
    )
    told = rng.choice(
        (f"My {topic} is {value}.", f"Please note: my {topic} is {value}.", f"Hi, my {topic} is {value}.")
    )
    fillers = [_draw_filler(rng, setting) for _ in range(rng.randint(0, 2))]
    noted = f"I will remember that your {topic} is {value}."
    if rng.random() < 0.3:
        history = [message for filler in fillers for message in filler] + [user(told)]
        high = f"The user tells me: the {topic} is {value}. I should confirm it."
        answer = [*reason(setting.effort, f"Remember the {topic}.", high), final(noted)]
        return Draft(f"{told} {len(fillers)}", history, answer)
    asks = rng.choice((f"What is my {topic}?", f"Do you remember my {topic}?", f"Tell me my {topic}."))
    history = [user(told), final(noted), *(message for filler in fillers for message in filler), user(asks)]
    high = f"The user asks for the {topic}. Earlier the user told me that it is {value}."
    answer = [*reason(setting.effort, f"Recall the {topic}.", high), final(f"Your {topic} is {value}.")]
    return Draft(f"{told} {asks}", history, answer)


def _draw_filler(rng: random.Random, setting: Setting) -> list[Message]:
    draft = rng.choice((greetings, facts))(rng, setting)
    return [*draft.history, draft.answer[-1]]
