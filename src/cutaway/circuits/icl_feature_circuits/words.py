"""Word lists of the tasks, written for this project; regular forms are made by rule."""

import itertools

import numpy as np

from cutaway.circuits.icl_feature_circuits.data import Pair, Task
from cutaway.errors import UsageError, nearest


def words(text: str) -> tuple[str, ...]:
    """Words of a list written as one text."""
    return tuple(text.split())


NOUNS = words(
    "apple ball bank bed bell bird boat book bottle bowl box boy branch bread bridge brother brush bus cake camera car "
    "card cat chair circle city class clock cloud coat coin computer cow crowd cup daughter desk doctor dog door dream "
    "dress driver duck ear engine eye face family farm farmer field film finger fire flag floor flower forest fox "
    "friend game garden gate girl glass glove goal guest guitar hat hill hole horse hospital hotel house idea island "
    "jacket key king kitchen lady lake lamp language law leg letter library line lion list machine map market match "
    "minute mirror moment monkey month moon mountain movie name nation neck nurse ocean office orange painter palace "
    "paper park party pen pencil phone picture pig pilot plane planet plant plate player poem poet pool prince queen "
    "question rabbit radio ring river road rock roof room rope school sea seat secret shirt shoe shop sister song "
    "soldier star station stone store storm story street student table teacher tower town train tree truck uncle "
    "valley village voice wall watch week wheel window wing winter word worker writer year"
)
IRREGULAR_PLURALS = {
    "child": "children",
    "man": "men",
    "woman": "women",
    "foot": "feet",
    "tooth": "teeth",
    "mouse": "mice",
    "leaf": "leaves",
    "knife": "knives",
    "life": "lives",
    "wife": "wives",
    "wolf": "wolves",
    "potato": "potatoes",
    "tomato": "tomatoes",
    "hero": "heroes",
}
REGULAR_VERBS = words(
    "accept add admit agree allow answer appear arrive ask attack attend avoid bake belong borrow call carry change "
    "chase check clean climb close collect compare complain complete consider continue cook copy count cover create "
    "cry cross dance decide defend deliver depend describe design destroy discover divide drop dry earn enjoy enter "
    "escape examine exist expect explain express fail fill finish fix follow force form gather greet guess hand "
    "happen hate help hope improve include introduce invite join jump kick kill knock laugh learn lift like listen "
    "live load look love manage marry miss mix move need notice offer open order paint park pass perform pick plan "
    "plant play point pray prefer prepare promise protect prove pull push rain raise reach realize receive record "
    "reduce refuse remain remember remove repair repeat reply report require rest return save serve share shout smile "
    "start stay stop study suffer suggest supply support suppose talk taste thank touch train travel try turn use "
    "visit wait walk want warn wash waste watch wish wonder work worry"
)
IRREGULAR_PASTS = {
    "become": "became",
    "begin": "began",
    "blow": "blew",
    "break": "broke",
    "bring": "brought",
    "build": "built",
    "buy": "bought",
    "catch": "caught",
    "choose": "chose",
    "come": "came",
    "draw": "drew",
    "drink": "drank",
    "drive": "drove",
    "eat": "ate",
    "fall": "fell",
    "feel": "felt",
    "fight": "fought",
    "find": "found",
    "fly": "flew",
    "forget": "forgot",
    "get": "got",
    "give": "gave",
    "go": "went",
    "grow": "grew",
    "hear": "heard",
    "hold": "held",
    "keep": "kept",
    "know": "knew",
    "lead": "led",
    "leave": "left",
    "lose": "lost",
    "make": "made",
    "meet": "met",
    "pay": "paid",
    "ride": "rode",
    "rise": "rose",
    "run": "ran",
    "say": "said",
    "see": "saw",
    "sell": "sold",
    "send": "sent",
    "sing": "sang",
    "sit": "sat",
    "sleep": "slept",
    "speak": "spoke",
    "spend": "spent",
    "stand": "stood",
    "swim": "swam",
    "take": "took",
    "teach": "taught",
    "tell": "told",
    "think": "thought",
    "throw": "threw",
    "understand": "understood",
    "wear": "wore",
    "win": "won",
    "write": "wrote",
}
DOUBLING = frozenset(words("admit begin drop forget get plan prefer run sit stop swim win"))
"""Verbs that double their last consonant."""
CAPITALS = (
    "Afghanistan Kabul, Albania Tirana, Algeria Algiers, Angola Luanda, Argentina Buenos-Aires, Armenia Yerevan, "
    "Australia Canberra, Austria Vienna, Azerbaijan Baku, Bahrain Manama, Bangladesh Dhaka, Belarus Minsk, Belgium "
    "Brussels, Bolivia La-Paz, Brazil Brasilia, Bulgaria Sofia, Cambodia Phnom-Penh, Canada Ottawa, Chile Santiago, "
    "China Beijing, Colombia Bogota, Croatia Zagreb, Cuba Havana, Cyprus Nicosia, Denmark Copenhagen, Ecuador Quito, "
    "Egypt Cairo, Estonia Tallinn, Ethiopia Addis-Ababa, Fiji Suva, Finland Helsinki, France Paris, Georgia Tbilisi, "
    "Germany Berlin, Ghana Accra, Greece Athens, Haiti Port-au-Prince, Honduras Tegucigalpa, Hungary Budapest, Iceland "
    "Reykjavik, India Delhi, Indonesia Jakarta, Iran Tehran, Iraq Baghdad, Ireland Dublin, Israel Jerusalem, Italy "
    "Rome, Jamaica Kingston, Japan Tokyo, Jordan Amman, Kenya Nairobi, Kuwait Kuwait-City, Laos Vientiane, Latvia "
    "Riga, Lebanon Beirut, Libya Tripoli, Lithuania Vilnius, Madagascar Antananarivo, Malaysia Kuala-Lumpur, Mali "
    "Bamako, Malta Valletta, Mexico Mexico-City, Mongolia Ulaanbaatar, Morocco Rabat, Mozambique Maputo, Nepal "
    "Kathmandu, Netherlands Amsterdam, Nicaragua Managua, Niger Niamey, Nigeria Abuja, Norway Oslo, Oman Muscat, "
    "Pakistan Islamabad, Panama Panama-City, Paraguay Asuncion, Peru Lima, Philippines Manila, Poland Warsaw, Portugal "
    "Lisbon, Qatar Doha, Romania Bucharest, Russia Moscow, Rwanda Kigali, Senegal Dakar, Serbia Belgrade, Singapore "
    "Singapore, Slovakia Bratislava, Slovenia Ljubljana, Somalia Mogadishu, Spain Madrid, Sudan Khartoum, Sweden "
    "Stockholm, Switzerland Bern, Syria Damascus, Taiwan Taipei, Tanzania Dodoma, Thailand Bangkok, Tunisia Tunis, "
    "Turkey Ankara, Uganda Kampala, Ukraine Kyiv, Uruguay Montevideo, Venezuela Caracas, Vietnam Hanoi, Yemen Sanaa, "
    "Zambia Lusaka, Zimbabwe Harare"
)
ANTONYMS = (
    "above below, absent present, alive dead, always never, ancient modern, asleep awake, bad good, beautiful ugly, "
    "begin end, better worse, big small, bitter sweet, black white, bottom top, brave afraid, bright dark, buy sell, "
    "cheap expensive, clean dirty, clever stupid, closed open, cold hot, cruel kind, dangerous safe, day night, deep "
    "shallow, difficult easy, down up, dry wet, early late, east west, empty full, enemy friend, enter leave, even "
    "odd, evening morning, false true, famous unknown, far near, fast slow, fat thin, father mother, female male, few "
    "many, find lose, first last, forget remember, give take, happy sad, hard soft, hate love, healthy sick, heavy "
    "light, high low, husband wife, in out, inside outside, king queen, knowledge ignorance, large little, laugh cry, "
    "left right, less more, long short, loose tight, loud quiet, man woman, maximum minimum, narrow wide, negative "
    "positive, new old, nobody everybody, north south, nothing everything, over under, past future, peace war, poor "
    "rich, private public, proud humble, pull push, rough smooth, sharp blunt, single married, sink float, start "
    "finish, strong weak, summer winter, success failure, tall tiny, victory defeat, young elderly"
)
UNITS = words("one two three four five six seven eight nine")
TEENS = words("ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen")
TENS = words("twenty thirty forty fifty sixty seventy eighty ninety")
LISTS = 400
"""Pairs of each list task."""
_VOWELS = frozenset("aeiou")


def plural(noun: str) -> str:
    """Regular or listed plural."""
    if noun in IRREGULAR_PLURALS:
        return IRREGULAR_PLURALS[noun]
    return _with_s(noun)


def past(verb: str) -> str:
    """Regular or listed past tense."""
    if verb in IRREGULAR_PASTS:
        return IRREGULAR_PASTS[verb]
    if verb.endswith("e"):
        return verb + "d"
    return _stem(verb) + "ed"


def gerund(verb: str) -> str:
    """The -ing form."""
    if verb.endswith("e") and not verb.endswith("ee"):
        return verb[:-1] + "ing"
    return (verb + verb[-1] if verb in DOUBLING else verb) + "ing"


def third(verb: str) -> str:
    """Third person singular."""
    return "goes" if verb == "go" else _with_s(verb)


def number_word(n: int) -> str:
    """English for 1 to 99."""
    if not 1 <= n <= 99:
        raise UsageError(f"n={n}: 1 to 99")
    if n < 10:
        return UNITS[n - 1]
    if n < 20:
        return TEENS[n - 10]
    return TENS[n // 10 - 2] + (f"-{UNITS[n % 10 - 1]}" if n % 10 else "")


def tasks(seed: int = 0) -> dict[str, Task]:
    """All tasks by name; the list tasks are drawn with ``seed``."""
    nouns, verbs = [*NOUNS, *IRREGULAR_PLURALS], sorted({*REGULAR_VERBS, *IRREGULAR_PASTS})
    capitals = [(part.split()[0], part.split()[1].replace("-", " ")) for part in CAPITALS.split(",")]
    opposites = [(part.split()[0], part.split()[1]) for part in ANTONYMS.split(",")]
    letters = "abcdefghijklmnopqrstuvwxyz"
    made: dict[str, list[Pair]] = {
        "plural": [(noun, plural(noun)) for noun in nouns],
        "singular": [(plural(noun), noun) for noun in nouns],
        "past": [(verb, past(verb)) for verb in verbs],
        "present": [(past(verb), verb) for verb in verbs],
        "gerund": [(verb, gerund(verb)) for verb in verbs],
        "third person": [(verb, third(verb)) for verb in verbs],
        "capital": capitals,
        "country": [(city, country) for country, city in capitals],
        "antonym": _first_of_each([*opposites, *((b, a) for a, b in opposites)]),
        "upper case": [(noun, noun.capitalize()) for noun in nouns],
        "next letter": list(itertools.pairwise(letters)),
        "number word": [(str(n), number_word(n)) for n in range(1, 100)],
        "next number": [(number_word(n), number_word(n + 1)) for n in range(1, 99)],
    }
    for place, name in enumerate(("first", "second", "third", "last")):
        made[name] = _lists(place, seed)
    return {name: Task(name, tuple(pairs)) for name, pairs in made.items()}


def task(name: str, seed: int = 0) -> Task:
    """One task by name; UsageError with the nearest name."""
    known = tasks(seed)
    if name not in known:
        raise UsageError(f"task {name!r}{nearest(name, known)}")
    return known[name]


def _lists(place: int, seed: int) -> list[Pair]:
    """Four different words, and the one at ``place``."""
    rng = np.random.default_rng([seed, 17, place])
    rows = [[NOUNS[i] for i in rng.permutation(len(NOUNS))[:4]] for _ in range(LISTS)]
    return _first_of_each([(" ".join(row), row[place]) for row in rows])


def _first_of_each(pairs: list[Pair]) -> list[Pair]:
    return list({x: (x, y) for x, y in reversed(pairs)}.values())[::-1]


def _with_s(word: str) -> str:
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return word + "es"
    if word.endswith("y") and word[-2] not in _VOWELS:
        return word[:-1] + "ies"
    return word + "s"


def _stem(verb: str) -> str:
    if verb.endswith("y") and verb[-2] not in _VOWELS:
        return verb[:-1] + "i"
    return verb + verb[-1] if verb in DOUBLING else verb
