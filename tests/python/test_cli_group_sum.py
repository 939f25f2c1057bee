"""`tally group-sum`: compared with DuckDB, under a hard memory limit, and on files with errors."""

import resource
import subprocess
import time
from pathlib import Path

import duckdb
import pytest
from conftest import ROOT, clean_environment, step_aside

MIB = 1024 * 1024
PLAYS = ROOT.parent / "shared" / "data" / "plays_100k.csv"

GROUPS = 20_000_000
STEP = 7919  # coprime to GROUPS, so that its multiples modulo GROUPS take every value once
# The limit of heap and stacks of the process: beyond it an allocation fails.
DATA_BYTES_MAX = 192 * MIB
PEAK_BYTES_MAX = 96 * MIB


def group_sum(tally_binary, *arguments, stdout=subprocess.PIPE, **options) -> subprocess.CompletedProcess:
    command = [str(part) for part in (tally_binary, "group-sum", *arguments)]
    return subprocess.run(
        command, env=clean_environment(), stdout=stdout, stderr=subprocess.PIPE, encoding="utf-8", **options
    )


def test_plays_as_duckdb_has_them(tally_binary, tmp_path):
    if not PLAYS.exists():
        step_aside(f"{PLAYS} is missing")
    result = tmp_path / "totals.csv"
    by_tally = group_sum(
        tally_binary, PLAYS, "--by", "Song,Date", "--sum", "Number of Plays", "--output", result
    )
    assert (by_tally.returncode, by_tally.stdout, by_tally.stderr) == (0, "", "")
    # DuckDB accepts only one kind of row end; the file has two.
    unified = tmp_path / "plays.csv"
    unified.write_bytes(PLAYS.read_bytes().replace(b"\r\n", b"\n"))
    read = "read_csv('{}', header = true, auto_detect = false, columns = {{{}}}, delim = ',', quote = '\"')"
    plays = read.format(unified, "'song': 'VARCHAR', 'date': 'VARCHAR', 'plays': 'BIGINT'")
    totals = read.format(result, "'song': 'VARCHAR', 'date': 'VARCHAR', 'total': 'BIGINT'")
    with duckdb.connect() as connection:
        expected = connection.execute(
            f"SELECT song, date, sum(plays)::BIGINT FROM {plays} GROUP BY ALL ORDER BY song, date"
        ).fetchall()
        found = connection.execute(f"SELECT * FROM {totals}").fetchall()
    assert len(expected) == 28_028
    assert found == expected


def high_water_bytes(pid: int) -> int:
    """The peak memory of a process so far; 0 once it has ended. (wait4 would count the memory of this process too, because
    the other one is a fork of it for a moment.)"""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))


def test_20_million_groups_under_a_hard_limit(tally_binary, tmp_path):
    source, result = tmp_path / "distinct.csv", tmp_path / "totals.csv"
    with duckdb.connect() as connection:
        connection.execute(
            f"COPY (SELECT 'k' || (i * {STEP} % {GROUPS}) AS key, i AS n FROM range({GROUPS}) AS t(i))"
            f" TO '{source}' (HEADER)"
        )
        assert source.stat().st_size > 300 * MIB
        command = [tally_binary, "group-sum", source, "--by", "key", "--sum", "n", "--output", result]
        command += ["--memory-bytes", 40 * MIB, "--temp-dir", tmp_path]
        process = subprocess.Popen(
            [str(part) for part in command],
            env=clean_environment(),
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (DATA_BYTES_MAX, DATA_BYTES_MAX)),
        )
        peak_bytes = 0
        while process.poll() is None:
            peak_bytes = max(peak_bytes, high_water_bytes(process.pid))
            time.sleep(0.01)
        print(f"peak memory {peak_bytes / MIB:.0f} MiB")
        assert process.returncode == 0
        source.unlink()
        assert [path.name for path in tmp_path.iterdir()] == [result.name], "files are left"

        # Each key occurs once, in order, with the value of its row.
        inverse = pow(STEP, -1, GROUPS)
        totals = f"read_csv('{result}', header = true, columns = {{'key': 'VARCHAR', 'total': 'BIGINT'}})"
        rows, right, ordered = connection.execute(
            f"SELECT count(*), count(*) FILTER (WHERE total = key[2:]::BIGINT * {inverse} % {GROUPS}),"
            f" count(*) FILTER (WHERE before < key)"
            f" FROM (SELECT key, total, lag(key) OVER () AS before FROM {totals})"
        ).fetchone()
    assert (rows, right, ordered) == (GROUPS, GROUPS, GROUPS - 1)
    assert 0 < peak_bytes < PEAK_BYTES_MAX


@pytest.mark.parametrize(
    "csv, says",
    [
        (b"Song,n\na,1\n", 'the file has no column "Date"'),
        (b"Song,Date,n\na,b,1\na,b,many\n", 'row 2 (line 3), column "n": "many" is not an integer'),
        (b"Song,Date,n\na,b,1\na,1\n", "row 2 (line 3) has 2 cells, the header has 3"),
        (b'Song,Date,n\n"a,b,1\n', 'row 1 (line 2), column "Song": a quoted cell is not closed'),
        (
            b"Song,Date,n\na,b,9223372036854775807\na,b,1\n",
            'group "a", "b", column "n": the sum 9223372036854775808 does not fit in 64 bits',
        ),
        (b"", "the file has no header row"),
    ],
)
def test_a_wrong_file_is_one_line(tally_binary, tmp_path, csv, says):
    source, result = tmp_path / "in.csv", tmp_path / "totals.csv"
    source.write_bytes(csv)
    said = group_sum(tally_binary, source, "--by", "Song,Date", "--sum", "n", "--output", result)
    assert (said.returncode, said.stdout, said.stderr) == (1, "", f"error: {source}: {says}\n")
    assert [path.name for path in tmp_path.iterdir()] == [source.name], "half a result is left"


def test_what_cannot_be_asked(tally_binary, tmp_path):
    source = tmp_path / "in.csv"
    source.write_bytes(b'"City, State",n\nx,1\n')
    said = group_sum(tally_binary, source, "--by", '"City, State"', "--sum", "n")
    assert (said.returncode, said.stdout, said.stderr) == (0, '"City, State",n\nx,1\n', "")
    for arguments, says in [
        ((source, "--by", "n", "--sum", "n"), 'a group sum names column "n" twice'),
        ((tmp_path, "--by", "a", "--sum", "n"), f"{tmp_path}: cannot read: not a regular file"),
        (
            (source, "--by", '"City, State"', "--sum", "n", "--output", tmp_path / "no" / "totals.csv"),
            f"cannot write to {tmp_path / 'no' / 'totals.csv'}: ",
        ),
    ]:
        said = group_sum(tally_binary, *arguments)
        assert said.returncode == 1
        assert said.stderr.startswith(f"error: {says}") and said.stderr.count("\n") == 1, said.stderr


def test_a_reader_that_has_seen_enough(tally_binary, tmp_path):
    source = tmp_path / "in.csv"
    with open(source, "w", encoding="utf-8") as file:
        file.write("k,n\n")
        file.writelines(f"key {index},1\n" for index in range(200_000))
    command = [str(tally_binary), "group-sum", str(source), "--by", "k", "--sum", "n"]
    process = subprocess.Popen(
        command, env=clean_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout.readline() == b"k,n\n"
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(timeout=60) == 0
