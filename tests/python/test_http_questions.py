"""Questions about the table over HTTP: its figures, its columns, sums, group sums, and what can be asked about the survey.

Answers are compared with those over gRPC, and with receipts and rows that are added up here.
"""

import csv
import io
import json
import random
import threading
from collections import Counter, defaultdict

import grpc
import pytest
import requests
import table_pb2
import tally_pb2
from conftest import INPUTS, Server, table, tally
from http_calls import ANSWER_SECONDS_MAX, get
from uploads import stream

TABLE = "/api/v1/table"
SUM = TABLE + "/sum"
GROUPS = TABLE + "/groups"
COLUMNS = TABLE + "/columns"
QUESTIONS = "/api/v1/survey/questions"
STATES = "/api/v1/survey/states"
TYPES = {
    tally_pb2.INT64: "int64",
    tally_pb2.FLOAT64: "float64",
    tally_pb2.BOOLEAN: "boolean",
    tally_pb2.DATE32: "date32",
    tally_pb2.TIMESTAMP: "timestamp",
    tally_pb2.TIMESTAMP_UTC: "timestamp_utc",
    tally_pb2.UTF8: "utf8",
}
HOSTILE = [
    "",
    " ",
    "a b",
    "<img src=x onerror=alert(1)>",
    "x&y=1",
    "100%",
    "a+b",
    "../../etc/passwd",
    'say "hi"',
    "comma, semicolon;",
    "two\nlines",
    "\u202egnp.exe",
    "ünï",
    "数",
    "\x1b[31m",
    "#hash?",
]


def ask(server: Server, path: str, **parameters):
    answer = get(server, path, params=parameters)
    assert answer.status_code == 200, answer.text
    return answer.json()


def problem(server: Server, path: str, parameters, status: int = 400) -> dict:
    """The problem that answers a question."""
    answer = get(server, path, params=parameters)
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    found = answer.json()
    assert found["status"] == status
    return found


def listed(server: Server) -> list:
    return list(tally(server).ListParts(tally_pb2.ListPartsRequest()))


def upload(server: Server, rows) -> None:
    """A file of these rows, the header first."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL).writerows(rows)
    stream(server, text.getvalue().encode())


def remove(server: Server, part: int, purge: bool = False) -> None:
    tally(server).RemovePart(tally_pb2.RemovePartRequest(part=part, purge=purge))


def restore(server: Server, part: int) -> None:
    tally(server).RestorePart(tally_pb2.RestorePartRequest(part=part))


def all_columns(server: Server, limit: int = 1000) -> list:
    """All columns, page by page."""
    columns, after, parts = [], {}, len(listed(server))
    while True:
        page = ask(server, COLUMNS, limit=limit, **after)
        assert page["complete"] and page["table_parts"] == parts and len(page["columns"]) <= limit
        columns += page["columns"]
        if page["next"] is None:
            return columns
        assert page["next"] == page["columns"][-1]["name"]
        after = {"after": page["next"]}


def check_columns(server: Server) -> None:
    """The figures are those that the receipts of all parts add up to."""
    types, rows, nulls = defaultdict(Counter), Counter(), Counter()
    receipts = listed(server)
    for receipt in receipts:
        for column in receipt.columns:
            types[column.name][column.type] += 1
            rows[column.name] += receipt.rows
            nulls[column.name] += column.nulls
    expected = [
        {
            "name": name,
            "types": [{"type": TYPES[number], "parts": types[name][number]} for number in sorted(types[name])],
            "parts": sum(types[name].values()),
            "rows": rows[name],
            "nulls": nulls[name],
            "parts_without_bytes": 0,
        }
        for name in sorted(types, key=str.encode)
    ]
    found = all_columns(server)
    bytes_of = {column["name"]: column.pop("parquet_bytes") for column in found}
    assert found == expected
    assert all_columns(server, limit=2) == all_columns(server)
    for name in types:
        # A sum reads the chunks of a column of integers, and nothing else.
        if set(types[name]) == {tally_pb2.INT64}:
            assert bytes_of[name] == ask(server, SUM, column=name, format="parquet")["bytes"], name
        assert bytes_of[name] > 0 or rows[name] == 0
    overview = ask(server, TABLE)
    assert {name: overview[name] for name in ("parts", "rows", "columns", "csv_bytes", "parquet_bytes")} == {
        "parts": len(receipts),
        "rows": sum(receipt.rows for receipt in receipts),
        "columns": len(types),
        "csv_bytes": sum(receipt.csv.bytes for receipt in receipts),
        "parquet_bytes": sum(receipt.parquet.bytes for receipt in receipts),
    }
    assert sum(bytes_of.values()) <= overview["parquet_bytes"]


@pytest.mark.parametrize("seed", [random.randrange(10**6)])
def test_columns_after_any_changes(start_server, tmp_path, seed):
    print("seed", seed)
    choose = random.Random(seed)
    server = start_server(tmp_path / "data", "--durability", "none")
    cells = ["", "1", "-7", "2.5", "true", "2024-01-02", "text", "2024-01-02T03:04:05", "2024-01-02T03:04:05Z"]
    there, removed = [], []
    for _ in range(60):
        change = choose.choice(["upload"] * 5 + ["remove", "remove", "purge", "restore", "restart"])
        if change == "upload":
            names = choose.sample(HOSTILE[1:] + ["a", "b"], choose.randint(1, 4))
            kinds = [choose.sample(cells, 2) for _ in names]
            height = choose.randint(0, 5)
            upload(server, [names] + [[choose.choice(kind) for kind in kinds] for _ in range(height)])
            there.append(listed(server)[-1].part)
        elif change == "restart":
            server.stop()
            server = start_server(tmp_path / "data", "--durability", "none")
        elif change == "restore" and removed:
            part = removed.pop(choose.randrange(len(removed)))
            restore(server, part)
            there.append(part)
        elif change in ("remove", "purge") and there:
            part = there.pop(choose.randrange(len(there)))
            remove(server, part, purge=change == "purge")
            if change == "remove":
                removed.append(part)
        assert ask(server, TABLE)["removed"] == len(removed)
        if choose.random() < 0.3:
            check_columns(server)
    check_columns(server)
    server.stop()
    server = start_server(tmp_path / "data", "--durability", "none")
    check_columns(server)


def test_columns_while_parts_come_and_go(server):
    """A part is counted as a whole or not at all: each has as many empty cells as rows."""
    ended, failures = threading.Event(), []

    def change():
        try:
            for number in range(1, 40):
                stream(server, b"x,y\n1,\n2,\n3,\n")
                if number % 3 == 0:
                    remove(server, number)
        except Exception as error:  # noqa: BLE001 (it is told below)
            failures.append(error)
        finally:
            ended.set()

    changing = threading.Thread(target=change)
    changing.start()
    while not ended.is_set():
        columns = ask(server, COLUMNS)["columns"]
        if columns:
            x, y = columns
            assert x["rows"] == y["rows"] == y["nulls"] == 3 * x["parts"] == 3 * y["parts"]
    changing.join()
    assert not failures
    check_columns(server)


def test_a_part_of_an_older_version_has_no_bytes_of_columns(start_server, tmp_path):
    server = start_server(tmp_path / "data")
    stream(server, b"x\n1\n")
    stream(server, b"x\n2\n")
    both = ask(server, COLUMNS)["columns"][0]
    server.stop()
    path = tmp_path / "data/parts/1.json"
    text = path.read_text()
    assert '"column_bytes":[' in text
    receipt = json.loads(text)
    # Without the checksum at its end, a receipt is one of format version 1.
    for name in ("column_bytes", "checks", "record_xxh3"):
        del receipt[name]
    path.write_text(json.dumps({**receipt, "format": 1}, separators=(",", ":")))
    server = start_server(tmp_path / "data")
    column = ask(server, COLUMNS)["columns"][0]
    assert column == {**both, "parts_without_bytes": 1, "parquet_bytes": both["parquet_bytes"] // 2}
    assert ask(server, SUM, column="x")["total"] == 3  # the part is upgraded
    remove(server, 1)
    column = ask(server, COLUMNS)["columns"][0]
    assert (column["parts"], column["parts_without_bytes"], column["rows"]) == (1, 0, 1)
    restore(server, 1)
    assert ask(server, COLUMNS)["columns"][0]["parts_without_bytes"] == 1


def test_sums_are_those_of_grpc(server):
    stream(server, b"x,y,text\n1,9007199254740992,a\n2,,b\n")
    stream(server, b"y\n-1\n")
    stream(server, b"z\n9223372036854775807\n")
    for column in ("x", "y", "z", "n"):
        for format in ("csv", "parquet"):
            request = table_pb2.ColSumReq(column=column, format=format)
            total = table(server).ColumnSum(request).total
            kind = tally_pb2.Format.Value(format.upper())
            answer = tally(server).Sum(tally_pb2.SumRequest(column=column, formats=[kind]))
            found = ask(server, SUM, column=column, format=format)
            assert int(found["total"]) == total == answer.sums[0].total
            assert isinstance(found["total"], int) == (abs(total) < 2**53)
            assert found["elapsed_ms"] > 0 and answer.sums[0].elapsed_ms > 0
            figures = answer.sums[0]
            assert (found["bytes"], found["parts"], found["rows"]) == (figures.bytes, figures.parts, figures.rows)
            assert found["table_parts"] == answer.table_parts == 3
            assert found.get("hint") == ('no part has a column "n"' if column == "n" else None)
    assert ask(server, SUM, column="x")["format"] == "csv"
    both = tally(server).Sum(tally_pb2.SumRequest(column="y", formats=[tally_pb2.PARQUET, tally_pb2.CSV])).sums
    assert [(one.format, one.total) for one in both] == [(2, 2**53 - 1), (1, 2**53 - 1)]
    assert tally(server).Sum(tally_pb2.SumRequest(column="y")).sums[0].format == tally_pb2.PARQUET
    found = problem(server, SUM, {"column": "text"})
    assert (found["part"], found["row"], found["column"], found["cell"]) == (1, 1, "text", "a")
    for formats in ([1, 1], [1, 2, 1], [3], [0]):
        with pytest.raises(grpc.RpcError) as refused:
            tally(server).Sum(tally_pb2.SumRequest(column="y", formats=formats))
        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    with pytest.raises(grpc.RpcError) as refused:
        tally(server).Sum(tally_pb2.SumRequest(column="text"))
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert 'part 1, row 1, column "text"' in refused.value.details()


def test_a_total_that_does_not_fit_is_a_problem(server):
    stream(server, b"k,x\n1,9223372036854775807\n1,1\n")
    assert "does not fit in 64 bits" in problem(server, SUM, {"column": "x"})["detail"]
    for more in ({}, {"order": "total", "limit": 1}):
        found = problem(server, GROUPS, {"by": "k", "sum": "x", **more})
        assert "does not fit in 64 bits" in found["detail"]


def test_hostile_names(server):
    header = HOSTILE[1:]
    upload(server, [header, [str(number) for number in range(len(header))]])
    assert [column["name"] for column in all_columns(server)] == sorted(header, key=str.encode)
    for number, name in enumerate(header):
        assert ask(server, SUM, column=name)["total"] == number
        found = ask(server, GROUPS, by=name, sum=header[number - 1])
        expected = [{"key": [str(number)], "totals": [(number - 1) % len(header)]}]
        assert (found["by"], found["sum"], found["groups"]) == ([name], [header[number - 1]], expected)


@pytest.mark.parametrize(
    "path, parameters, field",
    [
        (SUM, {}, "column"),
        (SUM, {"column": ["x", "y"]}, "column"),
        (SUM, {"column": "x", "format": "xml"}, "format"),
        (SUM, {"column": "x", "Format": "csv"}, "query"),
        (COLUMNS, {"limit": "0"}, "limit"),
        (COLUMNS, {"limit": "1001"}, "limit"),
        (COLUMNS, {"limit": "x"}, "limit"),
        (COLUMNS, {"after": ["a", "b"]}, "after"),
        (COLUMNS, {"before": "a"}, "query"),
        (GROUPS, {}, "by"),
        (GROUPS, {"sum": "x"}, "by"),
        (GROUPS, {"by": "x"}, "sum"),
        (GROUPS, {"by": "x", "sum": "x"}, "query"),
        (GROUPS, {"by": ["x"] * 2, "sum": "y"}, "query"),
        (GROUPS, {"by": "x", "sum": "y", "order": "none"}, "order"),
        (GROUPS, {"by": "x", "sum": "y", "order": "total"}, "limit"),
        (GROUPS, {"by": "x", "sum": "y", "order": "total", "limit": "10001"}, "limit"),
        (GROUPS, {"by": "x", "sum": "y", "limit": "0"}, "limit"),
        (GROUPS, {"by": "x", "sum": "y", "limit": "-1"}, "limit"),
        (GROUPS, {"by": "x", "sum": "y", "format": "xml"}, "format"),
        (QUESTIONS, {"limit": "0"}, "limit"),
        (QUESTIONS, {"question": "x"}, "query"),
        (STATES, {"question": ["x", "y"]}, "question"),
    ],
)
def test_wrong_parameters(shared_server, path, parameters, field):
    assert problem(shared_server, path, parameters)["field"] == field


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory):
    with Server(tmp_path_factory.mktemp("shared") / "data", "--durability", "none") as server:
        yield server


def grpc_groups(server: Server, by, sum) -> list:
    blocks = tally(server).GroupSum(tally_pb2.GroupSumRequest(by=by, sum=sum))
    return [(tuple(group.cells), tuple(group.totals)) for block in blocks for group in block.groups]


def http_groups(server: Server, format: str, **parameters) -> list:
    """The groups of an answer in one of the formats."""
    answer = get(server, GROUPS, params={**parameters, "format": format})
    assert answer.status_code == 200, answer.text
    if format == "csv":
        assert answer.headers["Content-Type"] == "text/csv; charset=utf-8"
        assert answer.headers["Content-Disposition"].startswith("attachment")
        header, *rows = csv.reader(io.StringIO(answer.content.decode(), newline=""), strict=True)
        by = parameters["by"]
        assert header == [*by, *parameters["sum"]]
        return [(tuple(row[: len(by)]), tuple(map(int, row[len(by) :]))) for row in rows]
    if format == "ndjson":
        assert answer.headers["Content-Type"] == "application/x-ndjson"
        groups = [json.loads(line) for line in answer.content.decode().split("\n")[:-1]]
    else:
        whole = answer.json()
        assert (whole["by"], whole["sum"]) == (parameters["by"], parameters["sum"])
        assert whole["elapsed_ms"] > 0
        groups = whole["groups"]
    assert all(isinstance(total, int) == (abs(int(total)) < 2**53) for group in groups for total in group["totals"])
    return [(tuple(group["key"]), tuple(map(int, group["totals"]))) for group in groups]


FORMATS = ("json", "ndjson", "csv")


@pytest.mark.parametrize("seed", [random.randrange(10**6)])
def test_groups_in_all_formats_and_orders(server, seed):
    print("seed", seed)
    choose = random.Random(seed)
    keys = ["", "a", "a,b", 'say "hi"', "two\nlines", "\r", "ü", " x ", "\ufeff", "\x01", *map(str, range(20))]
    numbers = ["", "0", "-5", "3", str(2**53), str(-(2**53)), str(2**53 - 1), str(2**55), "1", "1", "1"]
    for _ in range(3):
        rows = [[choose.choice(keys), choose.choice(keys[:5]), choose.choice(numbers), "7"] for _ in range(150)]
        upload(server, [["k", "l", "x", "y"], *rows])
    for by in (["k"], ["k", "l"], ["l"]):
        for sum in (["x"], ["y", "x"]):
            expected = grpc_groups(server, by, sum)
            ranked = sorted(expected, key=lambda group: (-group[1][0], [cell.encode() for cell in group[0]]))
            for format in FORMATS:
                assert http_groups(server, format, by=by, sum=sum) == expected
                for limit in (1, 3, len(expected), 1000):
                    parameters = {"by": by, "sum": sum, "limit": limit}
                    assert http_groups(server, format, **parameters) == expected[:limit]
                    assert http_groups(server, format, order="total", **parameters) == ranked[:limit]
            for limit in (1, len(expected) - 1, len(expected), len(expected) + 1):
                whole = ask(server, GROUPS, by=by, sum=sum, limit=limit)
                assert whole["more"] == (limit < len(expected)) and "groups_count" not in whole
                whole = ask(server, GROUPS, by=by, sum=sum, limit=limit, order="total")
                assert whole["more"] == (limit < len(expected)) and whole["groups_count"] == len(expected)


def test_many_groups_are_streamed_and_ranked(server):
    """More than fit in one block, and more than are kept in memory for an answer."""
    rows = [[f"key {number * 7919 % 100_003:06}", number % 1000 - 500] for number in range(100_003)]
    upload(server, [["k", "x"], *rows])
    expected = sorted(((key,), (total,)) for key, total in rows)
    for format in FORMATS:
        assert http_groups(server, format, by=["k"], sum=["x"]) == expected
    ranked = sorted(expected, key=lambda group: (-group[1][0], group[0]))
    found = http_groups(server, "json", by=["k"], sum=["x"], order="total", limit=10_000)
    assert found == ranked[:10_000]


def test_groups_that_take_too_much_memory_to_rank_are_a_problem(server):
    rows = [[f"{number:0>4000}", 1] for number in range(1000)]
    upload(server, [["k", "x"], *rows])
    found = problem(server, GROUPS, {"by": "k", "sum": "x", "order": "total", "limit": 1000})
    assert "have more than 2097152 bytes: ask for fewer" in found["detail"]
    assert len(ask(server, GROUPS, by="k", sum="x", order="total", limit=100)["groups"]) == 100
    assert len(ask(server, GROUPS, by="k", sum="x")["groups"]) == 1000


def test_groups_of_no_part(server):
    for format, text in (
        ("csv", "k,x\n"),
        ("ndjson", ""),
    ):
        answer = get(server, GROUPS, params={"by": "k", "sum": "x", "format": format})
        assert (answer.status_code, answer.text) == (200, text)
    whole = ask(server, GROUPS, by="k", sum="x")
    assert (whole["groups"], whole["more"]) == ([], False)


def test_a_client_that_goes_away_frees_its_group_sum(server):
    """As many calls as may be open, each left when its answer begins: the next one is answered."""
    rows = [[f"key {number:06}", 1] for number in range(50_000)]
    upload(server, [["k", "x"], *rows])
    for _ in range(20):
        url = server.http + GROUPS
        with requests.get(url, params={"by": "k", "sum": "x"}, stream=True, timeout=ANSWER_SECONDS_MAX) as answer:
            assert next(answer.iter_content(1000))
    assert len(ask(server, GROUPS, by="k", sum="x")["groups"]) == 50_000


def test_damaged_parts_are_problems(start_server, tmp_path):
    server = start_server(tmp_path / "data")
    with open(INPUTS / "survey.csv", "rb") as survey:
        stream(server, survey.read())
    for name in ("1.csv", "1.parquet"):
        path = tmp_path / "data/parts" / name
        damaged = bytearray(path.read_bytes())
        damaged[len(damaged) // 2] ^= 1
        path.write_bytes(damaged)
    year = {"column": "YearStart"}
    for path, parameters in (
        (SUM, {**year, "format": "csv"}),
        (SUM, {**year, "format": "parquet"}),
        (GROUPS, {"by": "LocationDesc", "sum": "YearStart"}),
        (QUESTIONS, {}),
        (STATES, {}),
    ):
        found = problem(server, path, parameters, status=500)
        assert found["detail"].startswith("part 1") and "not what was written" in found["detail"], found
    # The figures do not come from these files.
    assert ask(server, TABLE)["parts"] == 1 and ask(server, COLUMNS)["complete"]
    server.stop()
    (tmp_path / "data/parts/1.csv").unlink()
    server = start_server(tmp_path / "data")
    assert ask(server, TABLE)["quarantined"] == 1
    for path, parameters in ((SUM, year), (GROUPS, {"by": "a", "sum": "b"}), (QUESTIONS, {}), (STATES, {})):
        assert "quarantine" in problem(server, path, parameters, status=500)["detail"]
    assert ask(server, COLUMNS)["columns"] == []


def survey_rows() -> list:
    with open(INPUTS / "survey.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_what_can_be_asked_about_the_survey(server):
    assert ask(server, QUESTIONS) == {"questions": [], "complete": True}
    assert ask(server, STATES) == {"states": [], "complete": True}
    rows = survey_rows()
    with open(INPUTS / "survey.csv", "rb") as survey:
        stream(server, survey.read())
    header = ["Question", "Data_Value", "LocationDesc", "StratificationCategory1", "Stratification1"]
    # Parquet does not keep these texts: such a part is read as CSV. A row without a value does not count.
    more = [["1.50", "1", "2.50", "a", "b"], ["1.50", "", "3.5", "a", "b"], ["1.5", " ", "4.5", "a", "b"]]
    upload(server, [header, *more])
    upload(server, [["Question", "Data_Value"], ["not of the survey", "1"]])
    rows += [dict(zip(header, row)) for row in more]
    rows = [row for row in rows if row["Data_Value"].strip()]
    counts = Counter(row["Question"] for row in rows if row["Question"])
    smallest = (
        "Percent of adults aged 18 years and older who have an overweight classification",
        "Percent of adults aged 18 years and older who have obesity",
        "Percent of adults who engage in no leisure-time physical activity",
        "Percent of adults who report consuming fruit less than one time daily",
        "Percent of adults who report consuming vegetables less than one time daily",
    )
    expected = [
        {"question": text, "rows": counts[text], "best": "min" if text.startswith(smallest) else "max"}
        for text in sorted(counts, key=str.encode)
    ]
    assert len(expected) > 2
    assert ask(server, QUESTIONS) == {"questions": expected, "complete": True}
    assert ask(server, QUESTIONS, limit=1) == {"questions": expected[:1], "complete": False}
    assert ask(server, QUESTIONS, limit=len(expected))["complete"]
    states = lambda question: sorted(  # noqa: E731
        {row["LocationDesc"] for row in rows if question in (None, row["Question"]) and row["LocationDesc"]},
        key=str.encode,
    )
    assert ask(server, STATES) == {"states": states(None), "complete": True}
    for question in counts:
        assert ask(server, STATES, question=question) == {"states": states(question), "complete": True}
    assert ask(server, STATES, question="never asked") == {"states": [], "complete": True}


def test_a_list_of_questions_is_bounded(server):
    header = ["Question", "Data_Value", "LocationDesc", "StratificationCategory1", "Stratification1"]
    rows = [[f"question {number:05}", "1", f"state {number:05}", "a", "b"] for number in range(5000)]
    upload(server, [header, *rows, *rows])
    found = ask(server, QUESTIONS)
    assert not found["complete"] and 100 < len(found["questions"]) < 1000
    assert {question["rows"] for question in found["questions"]} == {2}
    found = ask(server, STATES)
    assert not found["complete"] and 100 < len(found["states"]) < 1000
