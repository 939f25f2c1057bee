#!/usr/bin/env python3
"""Makes inputs/survey.csv and inputs/plays.csv: small examples for the statistics and for the file processing. All names
are real or plausible, all numbers are invented. A fixed seed makes the files the same everywhere.

    scripts/samples.py           # writes both files
    scripts/samples.py survey    # prints one of them, or `plays`
"""

import csv
import io
import random
import sys
from pathlib import Path
from typing import Callable, Dict, List, Sequence, Tuple

INPUTS = Path(__file__).resolve().parents[1] / "inputs"

SURVEY_HEADER = (
    "YearStart,YearEnd,LocationAbbr,LocationDesc,Class,Topic,Question,Data_Value_Type,Data_Value,"
    "Data_Value_Footnote,Sample_Size,StratificationCategory1,Stratification1"
).split(",")
# Class, topic, question, and the approximate answer in percent. For the first two questions, a smaller value is better.
QUESTIONS: List[Tuple[str, str, str, float]] = [
    (
        "Obesity / Weight Status",
        "Obesity / Weight Status",
        "Percent of adults aged 18 years and older who have obesity",
        31,
    ),
    (
        "Physical Activity",
        "Physical Activity - Behavior",
        "Percent of adults who engage in no leisure-time physical activity",
        25,
    ),
    (
        "Physical Activity",
        "Physical Activity - Behavior",
        "Percent of adults who achieve at least 150 minutes a week of moderate-intensity aerobic physical activity "
        "or 75 minutes a week of vigorous-intensity aerobic activity (or an equivalent combination)",
        51,
    ),
]
STATES = [
    ("CO", "Colorado", -7.0),
    ("DC", "District of Columbia", -6.0),
    ("HI", "Hawaii", -5.0),
    ("MS", "Mississippi", 8.0),
    ("OH", "Ohio", 3.0),
    ("PR", "Puerto Rico", 2.0),
    ("VI", "Virgin Islands, U.S.", 1.0),
]
STRATIFICATIONS = [
    ("Total", "Total"),
    ("Gender", "Female"),
    ("Income", "$15,000 - $24,999"),
    ("Education", "College graduate"),
]
TOO_FEW = "Data not available because sample size is insufficient, or not reported."

SONGS = [
    "Harbour Lights at Four",
    "Rain, Rain, and More Rain",
    'The "Last" Train Home',
    "It's Only Wednesday",
    "Ébène",
    "Paper Boats",
    "Nine Lives, One Cat",
    "Static",
    "Northern Line Blues",
    "Salt",
]


class Draws:
    """Draws from a seed, by the one method whose results Python promises never to change."""

    def __init__(self, seed: int):
        self._next = random.Random(seed).random

    def number(self, below: int) -> int:
        return int(self._next() * below)

    def pick(self, choices: Sequence[str]) -> str:
        return choices[self.number(len(choices))]

    def around(self, middle: float, spread: float) -> float:
        return middle + (self._next() + self._next() - 1) * spread


def line(cells: Sequence[object], row_end: str) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator=row_end).writerow(cells)
    return text.getvalue()


def survey() -> str:
    """84 rows: three questions in seven states, some without a value and two without a category."""
    draws = Draws(2011)
    lines = [line(SURVEY_HEADER, "\n")]
    for topic_class, topic, question, percent in QUESTIONS:
        good = "150 minutes" in question
        for abbreviation, state, worse in STATES:
            for category, stratification in STRATIFICATIONS:
                year = 2011 + 2 * draws.number(6)
                value = draws.around(percent + (-worse if good else worse), 6)
                sample_size = 50 + draws.number(4000)
                known = sample_size >= 300
                uncategorised = known and draws.number(30) == 0
                cells = [year, year, abbreviation, state, topic_class, topic, question, "Value"]
                cells += [f"{value:.1f}", "", sample_size] if known else ["", TOO_FEW, ""]
                cells += ["", ""] if uncategorised else [category, stratification]
                lines.append(line(cells, "\n"))
    return "".join(lines)


def plays() -> str:
    """200 rows, several of most songs on most days, some of which end in CRLF and some in LF."""
    draws = Draws(2023)
    lines = [line(["Song", "Date", "Number of Plays"], "\r\n")]
    for _ in range(200):
        date = f"2023-05-{1 + draws.number(7):02}"
        cells = [draws.pick(SONGS), date, 100 + draws.number(4900)]
        lines.append(line(cells, draws.pick(["\r\n", "\r\n", "\n"])))
    return "".join(lines)


SAMPLES: Dict[str, Callable[[], str]] = {"survey": survey, "plays": plays}


def main(names: List[str]) -> None:
    if not set(names) <= set(SAMPLES):
        sys.exit(f"usage: {Path(sys.argv[0]).name} [{' | '.join(SAMPLES)}]")
    for name in names:
        sys.stdout.buffer.write(SAMPLES[name]().encode())
    if not names:
        for name, sample in SAMPLES.items():
            (INPUTS / f"{name}.csv").write_bytes(sample().encode())


if __name__ == "__main__":
    main(sys.argv[1:])
