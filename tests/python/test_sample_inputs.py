"""inputs/survey.csv and inputs/plays.csv are what scripts/samples.py prints, and contain the special cases that they
are meant to show.
"""

import csv
import io
import os
import subprocess
import sys
from typing import Dict, List

import pytest
from conftest import INPUTS, ROOT

SCRIPT = ROOT / "scripts" / "samples.py"


def printed(*names: str) -> bytes:
    # The result must not depend on the locale or the hash seed.
    environment = {**os.environ, "LC_ALL": "C", "PYTHONHASHSEED": "7", "PYTHONIOENCODING": "ascii"}
    script = [sys.executable, str(SCRIPT), *names]
    return subprocess.run(script, stdout=subprocess.PIPE, env=environment, check=True).stdout


def rows(name: str) -> List[Dict[str, str]]:
    text = (INPUTS / f"{name}.csv").read_bytes().decode()
    return list(csv.DictReader(io.StringIO(text, newline="")))


@pytest.mark.parametrize("name", ["survey", "plays"])
def test_the_files_are_what_the_script_prints(name):
    assert printed(name) == (INPUTS / f"{name}.csv").read_bytes(), f"run scripts/samples.py to write {name}.csv"


def test_unknown_samples_are_refused():
    script = [sys.executable, str(SCRIPT), "survey", "other"]
    refused = subprocess.run(script, stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)
    assert (refused.returncode, refused.stdout, refused.stderr) == (1, "", "usage: samples.py [survey | plays]\n")


def test_the_survey_has_what_statistics_must_cope_with():
    survey = rows("survey")
    assert len(survey) == 84
    values = [float(row["Data_Value"]) for row in survey if row["Data_Value"]]
    assert 70 <= len(values) < 84, "some rows have no value"
    assert all(0 < value < 100 for value in values)
    assert len({row["Question"] for row in survey}) == 3
    assert len({row["LocationDesc"] for row in survey}) > 5, "so that best5 leaves some out"
    assert any("," in row["LocationDesc"] for row in survey)
    assert any("," in row["Stratification1"] for row in survey)
    uncategorised = [row for row in survey if not row["StratificationCategory1"]]
    assert uncategorised and all(row["Data_Value"] for row in uncategorised)


def test_the_plays_have_what_grouping_must_cope_with():
    plays = rows("plays")
    assert len(plays) == 200
    assert len({(row["Song"], row["Date"]) for row in plays}) < 100, "songs that are played on the same day"
    assert any("," in row["Song"] for row in plays) and any('"' in row["Song"] for row in plays)
    text = (INPUTS / "plays.csv").read_bytes()
    crlf = text.count(b"\r\n")
    assert 100 < crlf < 190 and text.count(b"\n") == 201 and text.count(b"\r") == crlf, "two kinds of row ends"
