"""Words that samples are made of: names, cities, countries, adjectives."""

from __future__ import annotations

# country: (capital, continent, language)
COUNTRIES: dict[str, tuple[str, str, str]] = {
    "France": ("Paris", "Europe", "French"),
    "Germany": ("Berlin", "Europe", "German"),
    "Italy": ("Rome", "Europe", "Italian"),
    "Spain": ("Madrid", "Europe", "Spanish"),
    "Portugal": ("Lisbon", "Europe", "Portuguese"),
    "Austria": ("Vienna", "Europe", "German"),
    "Greece": ("Athens", "Europe", "Greek"),
    "Poland": ("Warsaw", "Europe", "Polish"),
    "Norway": ("Oslo", "Europe", "Norwegian"),
    "Sweden": ("Stockholm", "Europe", "Swedish"),
    "Finland": ("Helsinki", "Europe", "Finnish"),
    "Denmark": ("Copenhagen", "Europe", "Danish"),
    "Ireland": ("Dublin", "Europe", "English"),
    "Hungary": ("Budapest", "Europe", "Hungarian"),
    "Russia": ("Moscow", "Europe", "Russian"),
    "England": ("London", "Europe", "English"),
    "Japan": ("Tokyo", "Asia", "Japanese"),
    "China": ("Beijing", "Asia", "Chinese"),
    "Thailand": ("Bangkok", "Asia", "Thai"),
    "Vietnam": ("Hanoi", "Asia", "Vietnamese"),
    "Turkey": ("Ankara", "Asia", "Turkish"),
    "Iran": ("Tehran", "Asia", "Persian"),
    "Egypt": ("Cairo", "Africa", "Arabic"),
    "Kenya": ("Nairobi", "Africa", "Swahili"),
    "Canada": ("Ottawa", "America", "English"),
    "Cuba": ("Havana", "America", "Spanish"),
    "Peru": ("Lima", "America", "Spanish"),
    "Chile": ("Santiago", "America", "Spanish"),
    "Brazil": ("Brasilia", "America", "Portuguese"),
    "Australia": ("Canberra", "Oceania", "English"),
}
CITIES: tuple[str, ...] = (
    *(capital for capital, _, _ in COUNTRIES.values()),
    *("Amsterdam", "Barcelona", "Boston", "Chicago", "Geneva", "Hamburg", "Milan", "Munich", "Naples", "Prague"),
    *("Seattle", "Seoul", "Sydney", "Toronto", "Zurich", "Miami", "Delhi", "Dubai", "Denver", "Dallas"),
)
NAMES: tuple[str, ...] = (
    *("Anna", "Ben", "Clara", "David", "Emma", "Frank", "Grace", "Henry", "Julia", "Kevin", "Laura", "Maria"),
    *("Nina", "Oscar", "Paul", "Rosa", "Sarah", "Tom", "Victor", "Alice", "Bob", "Carol", "Daniel", "Eva"),
    *("Felix", "George", "Helen", "Jack", "Lisa", "Max", "Peter", "Simon"),
)
LANGUAGES: tuple[str, ...] = tuple(sorted({language for _, _, language in COUNTRIES.values()}))
JOBS: tuple[str, ...] = ("teacher", "doctor", "baker", "pilot", "nurse", "farmer", "lawyer", "artist", "driver", "cook")
COLOURS: tuple[str, ...] = ("red", "blue", "green", "yellow", "white", "black", "orange", "purple", "brown", "pink")
ANIMALS: tuple[str, ...] = ("cat", "dog", "horse", "bird", "fish", "tiger", "lion", "bear", "wolf", "rabbit")
DAYS: tuple[str, ...] = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS: tuple[str, ...] = (
    *("January", "February", "March", "April", "May", "June", "July"),
    *("August", "September", "October", "November", "December"),
)
ROOMS: tuple[str, ...] = ("kitchen", "bedroom", "bathroom", "garage", "office", "hall", "garden", "basement")
EVENTS: tuple[str, ...] = (
    *("meeting", "lunch", "dinner", "party", "call", "lesson", "workout", "interview", "concert", "picnic"),
    *("team meeting", "birthday party", "piano lesson", "dentist visit", "project review"),
)
CONDITIONS: tuple[str, ...] = ("sunny", "cloudy", "rainy", "windy", "foggy", "snowy", "clear", "stormy")
OPPOSITES: dict[str, str] = {
    "hot": "cold",
    "big": "small",
    "fast": "slow",
    "up": "down",
    "left": "right",
    "day": "night",
    "good": "bad",
    "old": "new",
    "open": "closed",
    "full": "empty",
    "hard": "soft",
    "high": "low",
    "light": "dark",
    "long": "short",
    "loud": "quiet",
    "rich": "poor",
    "strong": "weak",
    "wet": "dry",
    "early": "late",
    "true": "false",
    "thick": "thin",
    "happy": "sad",
    "clean": "dirty",
    "first": "last",
}
THING_COLOURS: dict[str, str] = {
    "grass": "green",
    "the sky": "blue",
    "snow": "white",
    "coal": "black",
    "a banana": "yellow",
    "blood": "red",
    "chocolate": "brown",
    "a carrot": "orange",
    "milk": "white",
    "a lemon": "yellow",
    "a strawberry": "red",
    "the sun": "yellow",
}
# Words for queries, messages and notes, which the model has to copy.
_PLAIN = """
small language models neural networks fast red cars cheap flights best pizza near river history music piano
chess rules garden plants easy bread recipe green tea solar power winter boots running shoes coffee machines
blue whales old maps space travel deep ocean mountain bikes python code open source software windows drivers
graphics cards good books short stories movie reviews football news train times hotel prices healthy food
apple pie home work late today tomorrow please bring milk water keys letter happy birthday see you soon thank
call back ready done here there wait for me buy eggs fresh fruit new paper clean house feed the fish walk dog
pay rent send photos fix door paint wall read chapter write report check mail book tickets pack bags plan trip
meet friends finish project sunny weather light rain strong wind quiet place nice day great idea simple
question first second third number table chair window road bridge island forest lake summer spring autumn
morning evening
"""
WORDS: tuple[str, ...] = tuple(_PLAIN.split())
