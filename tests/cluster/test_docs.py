"""docs/cluster.md knows every flag of every role, and its environment variable."""

import re
import subprocess

import pytest
from conftest import BINARY, ROOT

PAGE = (ROOT / "docs" / "cluster.md").read_text()
OPERATING = (ROOT / "docs" / "operating.md").read_text()


@pytest.mark.parametrize("role", ["serve", "scheduler", "executor"])
def test_flags_are_documented(role):
    text = subprocess.run([BINARY, role, "--help"], check=True, capture_output=True, encoding="utf-8").stdout
    found = re.findall(r"^ +(--[a-z-]+)", text, re.MULTILINE)
    variables = re.findall(r"\[env: ([A-Z_]+)=", text)
    assert len(found) > 5 and len(variables) > 5
    for name in [*found, *variables]:
        is_known = f"`{name}`" in PAGE or (role == "serve" and f"`{name}`" in OPERATING)
        # Variables of `tally serve` follow from the names of its flags.
        is_derived = role == "serve" and "--" + name.removeprefix("TALLY_").lower().replace("_", "-") in found
        assert is_known or is_derived, f"{name} of {role}"
