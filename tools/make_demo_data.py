"""Make the demo's training and test set from the table of LEGO sets.

    python tools/make_demo_data.py legosets.csv [--out src/halfbyte/demo]

`legosets.csv` is data-tidy/legosets.csv of github.com/seankross/lego (CC0); src/halfbyte/demo/NOTE.md says what is
kept. A set's side is decided by a hash of its normalised name alone: the test set stays the same whatever is added or
dropped, and sets of one name ("Fire Station" exists nine times) never stand on both sides.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

COLUMNS = ("item", "name", "theme", "subtheme", "year", "pieces", "minifigures", "description", "price")
TEST_SHARE = 14  # one name in so many is tested


def normalise(name: str) -> str:
    """Lower case, and one space for whatever is neither letter nor digit."""
    return " ".join(re.findall(r"[^\W_]+", name.casefold()))


def is_test(name: str) -> bool:
    digest = hashlib.sha256(normalise(name).encode()).digest()
    return int.from_bytes(digest[:8], "big") % TEST_SHARE == 0


def describe(row: dict[str, str]) -> str:
    """What is known about a set, in a line; what the table does not know is left out.

    The wording is one that the untuned base model continues with a price of a plausible size.
    """
    parts = [_count(row[kind], kind.removesuffix("s")) for kind in ("pieces", "minifigures") if row[kind]]
    contents = " with " + " and ".join(parts) if parts else ""
    theme = ", ".join(filter(None, (row["theme"], row["subtheme"])))
    return f"{row['name']} is a LEGO set of {row['year']}{contents}. Theme: {theme}."


def _count(number: str, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == "1" else "s")


def tidy(rows: Iterable[dict[str, str]]) -> list[dict[str, str]]:
    """The rows with a price in US dollars above zero, in the source's order, in the demo's columns."""
    kept = []
    for row in rows:
        known = {key: "" if value == "NA" else " ".join(value.split()) for key, value in row.items()}
        if not known["USD_MSRP"] or float(known["USD_MSRP"]) <= 0:
            continue
        # 16 minifigures share the item number 71004; the name of the picture, 71004-5.jpg, tells them apart
        tidied = {"item": Path(known["Image_URL"]).stem, "price": known["USD_MSRP"]}
        tidied |= {column: known[column.capitalize()] for column in COLUMNS[1:7]}
        tidied["description"] = describe(tidied)
        kept.append(tidied)
    return kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="legosets.csv")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "src/halfbyte/demo")
    arguments = parser.parse_args()
    with arguments.source.open(newline="", encoding="utf-8") as file:
        rows = tidy(csv.DictReader(file))
    for side, wanted in (("train", False), ("test", True)):
        chosen = [row for row in rows if is_test(row["name"]) == wanted]
        with (arguments.out / f"{side}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(chosen)
        print(f"{side}.csv: {len(chosen)} sets")


if __name__ == "__main__":
    main()
