"""A small survey, the questions that the statistics API answers about it, and a simple computation of the answers."""

import csv
import io

QUESTION = "Percent of adults who engage in no leisure-time physical activity"
QUESTIONS = [  # the route, and its arguments other than the question
    ("states_mean", {}),
    ("state_mean", {"state": "Ohio"}),
    ("best5", {}),
    ("worst5", {}),
    ("global_mean", {}),
    ("diff_from_mean", {}),
    ("state_diff_from_mean", {"state": "Ohio"}),
    ("mean_by_category", {}),
    ("state_mean_by_category", {"state": "Ohio"}),
]
SURVEY_HEADER = "Question,LocationDesc,Data_Value,StratificationCategory1,Stratification1"


def survey_csv() -> bytes:
    """A survey with seven states and two categories, some missing values, and rows of another question."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["Year", *SURVEY_HEADER.split(",")])
    for row in range(280):
        state = ["Ohio", "Utah", "Iowa", "Texas", "Maine", "Idaho", "O'Hio"][row % 7]
        category = [("Income", "$15,000 - $24,999"), ("Sex", "Female"), ("", "")][row % 3]
        value = "" if row % 11 == 0 else f"{20 + row * 37 % 101 / 10:.1f}"
        rows.writerow([2000 + row % 9, QUESTION if row % 5 else "Another?", state, value, *category])
    return text.getvalue().encode()


SMALLEST_IS_BEST = (
    "Percent of adults aged 18 years and older who have an overweight classification",
    "Percent of adults aged 18 years and older who have obesity",
    "Percent of adults who engage in no leisure-time physical activity",
    "Percent of adults who report consuming fruit less than one time daily",
    "Percent of adults who report consuming vegetables less than one time daily",
)


def survey_oracle(route: str, rows: list, state: str = "", question: str = QUESTION):
    """The answer of a route, with means computed in the simplest way."""
    values = [
        (row["LocationDesc"], (row["StratificationCategory1"], row["Stratification1"]), float(row["Data_Value"]))
        for row in rows
        if row["Question"] == question and row["Data_Value"]
    ]

    def mean(wanted) -> float:
        found = [value for place, group, value in values if wanted(place, group)]
        return sum(found) / len(found)

    overall = mean(lambda place, group: True)
    states = {name: mean(lambda place, group: place == name) for name, _, _ in values}
    ascending = dict(sorted(states.items(), key=lambda item: item[1]))
    best_first = list(ascending.items())[:: 1 if question.startswith(SMALLEST_IS_BEST) else -1]
    groups = sorted({(place, *group) for place, group, _ in values if all(group)}, key=str)
    by_group = {key: mean(lambda place, group: (place, *group) == key) for key in groups}
    return {
        "states_mean": lambda: ascending,
        "state_mean": lambda: {state: states[state]},
        "best5": lambda: dict(best_first[:5]),
        "worst5": lambda: dict(best_first[::-1][:5]),
        "global_mean": lambda: {"global_mean": overall},
        "diff_from_mean": lambda: {name: overall - value for name, value in ascending.items()},
        "state_diff_from_mean": lambda: {state: overall - states[state]},
        "mean_by_category": lambda: {str(key): value for key, value in by_group.items()},
        "state_mean_by_category": lambda: {
            state: {str(key[1:]): value for key, value in by_group.items() if key[0] == state}
        },
    }[route]()


def flat(data: dict) -> dict:
    """A nested answer as one flat dictionary, so that numbers can be compared with a tolerance."""
    if all(isinstance(value, float) for value in data.values()):
        return data
    return {(outer, inner): value for outer, values in data.items() for inner, value in values.items()}


ORDERED = ("states_mean", "best5", "worst5", "diff_from_mean", "mean_by_category")
