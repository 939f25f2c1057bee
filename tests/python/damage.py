"""Damages stored files, asks the server questions about them, and judges the answers.

An answer is one of two: the right one, or DATA_LOSS with a text that names the part (or job) and the file.
Whatever else comes is a failure: a wrong number, an error that blames the user's data, an internal error, a text
that names nothing. `test_damage.py` asks some hundred times; `damage_all.py` damages every byte of small files and
many of large ones.
"""

import io
import random
import re
from collections import Counter
from pathlib import Path
from typing import Callable, Dict, List, NamedTuple, Optional

import grpc
import requests
import table_pb2
import tally_pb2
from conftest import KIB, Server, table, tally, wait_until

ANSWER_SECONDS_MAX = 60
TASKS = "/api/v1/file-processing/tasks/"
FLAGS = ("--durability", "none", "--log", "warn")
KEEP_JOBS = ("--jobs-sweep-s", "86400")
PROGRESS_ANSWERS = 5000  # between two lines of a long run
# The limit of memory, whatever is in the files.
PEAK_BYTES_MAX = 300 * KIB * KIB

SURVEY_COLUMNS = ["Question", "LocationDesc", "Data_Value", "StratificationCategory1", "Stratification1"]
ASKED = "How many?"
STATES = ["Ohio", "Utah", "Iowa", "Maine", "O'Hio"]
STRATIFICATIONS = [("Income", "$15,000 - $24,999"), ("Sex", "Female"), ("Sex", "Male"), ("", "")]
GROUPS = ["alpha", "beta", "gamma", "delta"]
QUOTED = ['a, "b"', "two\nlines", "it's; fine", '""', "plain"]

# --- tables -------------------------------------------------------------------------------------------------


class Part(NamedTuple):
    """A CSV file, and the values that it was made of."""

    csv: bytes
    names: List[str]
    rows: List[list]


def csv_of(names: List[str], rows: List[list]) -> bytes:
    def cell(value) -> str:
        text = str(value)
        return '"' + text.replace('"', '""') + '"' if any(c in text for c in ',"\n') else text

    lines = [",".join(map(cell, row)) for row in [names, *rows]]
    return ("\n".join(lines) + "\n").encode()


def mixed_part(numbers: random.Random, rows_count: int) -> Part:
    """Integers, numbers, text, repeated values, quoted cells, and the columns of the survey."""
    names = ["n", "f", "t", "g", "q", *SURVEY_COLUMNS]
    rows = []
    for row in range(rows_count):
        value = "" if row % 9 == 4 else round(numbers.uniform(0, 99), 1)
        rows.append(
            [
                numbers.randrange(-(10**6), 10 ** numbers.randrange(1, 12)),
                round(numbers.uniform(-1000, 1000), 3),
                "".join(numbers.choices("abcdefghij klmnop", k=numbers.randrange(1, 20))).strip() or "x",
                numbers.choice(GROUPS),
                numbers.choice(QUOTED),
                ASKED if row % 4 else "Another?",
                numbers.choice(STATES),
                value,
                *numbers.choice(STRATIFICATIONS),
            ]
        )
    return Part(csv_of(names, rows), names, rows)


def integer_part(numbers: random.Random, rows_count: int) -> Part:
    """A file with integers only, which the server converts in another way. All have the same width, so that files with as
    many rows have the same size.
    """
    rows = [[numbers.randrange(10**5, 10**6), numbers.randrange(10, 60)] for _ in range(rows_count)]
    return Part(csv_of(["n", "m"], rows), ["n", "m"], rows)


def small_parts(numbers: random.Random) -> List[Part]:
    """Three files under 4 KiB, two of them of the same size and with the same columns, and two of about 100 KB, which is
    more than one block."""
    parts = [mixed_part(numbers, 20), integer_part(numbers, 60), integer_part(numbers, 60)]
    assert all(len(part.csv) < 4 * KIB for part in parts) and len(parts[1].csv) == len(parts[2].csv)
    return [*parts, mixed_part(numbers, 1000), integer_part(numbers, 10_000)]


def large_parts(numbers: random.Random) -> List[Part]:
    """A small file, and two of some MB."""
    return [
        mixed_part(numbers, 20),
        mixed_part(numbers, 12_000),
        integer_part(numbers, 220_000),
    ]


# --- questions ----------------------------------------------------------------------------------------------


class Told(Exception):
    """DATA_LOSS, or the same over HTTP."""


class Blamed(Exception):
    """An error that blames the user's data or question."""


class Other(Exception):
    """Any other error."""


def call(ask: Callable):
    """An answer, or what kind of error it is."""
    try:
        return ask()
    except grpc.RpcError as error:
        if error.code() == grpc.StatusCode.DATA_LOSS:
            raise Told(error.details()) from None
        kind = Blamed if error.code() == grpc.StatusCode.INVALID_ARGUMENT else Other
        raise kind(f"{error.code().name}: {error.details()}") from None


def judge_text(text: str):
    """Errors of jobs have a text and no status. One that names a row and a column blames the data."""
    if re.search(r"\brow \d+\b.*\bcolumn\b", text) and "damaged" not in text:
        raise Blamed(text)
    if "damaged" in text or "quarantine" in text:
        raise Told(text)
    raise Other(text)


def column_sum(server: Server, column: str, file_format: str):
    request = table_pb2.ColSumReq(column=column, format=file_format)
    answer = call(lambda: table(server).ColumnSum(request, timeout=ANSWER_SECONDS_MAX))
    if answer.error:
        raise Blamed(answer.error)
    return answer.total


def group_sum(server: Server, by: List[str], column: str):
    request = tally_pb2.GroupSumRequest(by=by, sum=[column])
    blocks = call(lambda: list(tally(server).GroupSum(request, timeout=ANSWER_SECONDS_MAX)))
    return [(tuple(group.cells), group.totals[0]) for block in blocks for group in block.groups]


BROKEN_OFF = (requests.exceptions.ChunkedEncodingError, requests.exceptions.ConnectionError)


def http_get(server: Server, path: str, **headers) -> requests.Response:
    """An answer whose body was received completely. One that is interrupted after its first KiB counts as a report of damage,
    because HTTP has no other way by then; one that is interrupted earlier is a failure, because it could have been an error
    with a text.
    """
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    came = b""
    try:
        answer = requests.get(server.http + path, headers=named, timeout=ANSWER_SECONDS_MAX, stream=True)
        for piece in answer.iter_content(KIB):
            came += piece
    except BROKEN_OFF as error:
        kind = Told if len(came) >= KIB else Other
        raise kind(f"{path}: broken off after {len(came)} bytes: {error}") from None
    answer._content = came
    return answer


def survey_result(server: Server, job: str):
    """The result of a job that has ended; None if it has not."""
    answer = http_get(server, f"/api/get_results/{job}")
    # Clients of a statistic look only at the status in the body.
    body = answer.content
    if body.startswith(b'{"status":"done","data":'):
        return body
    state = answer.json()
    if state["status"] == "running":
        return None
    judge_text(state["reason"])


def survey(server: Server, route: str):
    body = {"question": ASKED, "state": STATES[0]}
    accepted = requests.post(f"{server.http}/api/{route}", json=body, timeout=ANSWER_SECONDS_MAX)
    if accepted.status_code != 200:
        raise Other(accepted.text)
    job = accepted.json()["job_id"]
    return wait_until(lambda: survey_result(server, job), f"the end of {job}", ANSWER_SECONDS_MAX)


def receipts(server: Server):
    request = tally_pb2.ListPartsRequest()
    listed = call(lambda: list(tally(server).ListParts(request, timeout=ANSWER_SECONDS_MAX)))
    for receipt in listed:
        if receipt.damaged:
            raise Told(receipt.damaged)
    return [receipt.SerializeToString(deterministic=True) for receipt in listed]


class Question(NamedTuple):
    """A question, how it is asked, and the kinds of file that its answer may depend on while the server runs."""

    name: str
    kinds: str
    ask: Callable[[Server], object]


LIST_PARTS = "list parts"
QUESTIONS = [
    *(
        Question(f"sum {column} {kind}", kind, lambda server, c=column, k=kind: column_sum(server, c, k))
        for column in ("n", "m")
        for kind in ("csv", "parquet")
    ),
    Question("group by g", "csv", lambda server: group_sum(server, ["g"], "n")),
    Question("group by q, LocationDesc", "csv", lambda server: group_sum(server, ["q", "LocationDesc"], "n")),
    Question("group by m", "csv", lambda server: group_sum(server, ["m"], "n")),
    Question("survey global_mean", "parquet", lambda server: survey(server, "global_mean")),
    Question("survey mean_by_category", "parquet", lambda server: survey(server, "mean_by_category")),
    Question(LIST_PARTS, "json", receipts),
]


def sum_oracle(parts: List[Part], column: str) -> int:
    having = [part for part in parts if column in part.names]
    return sum(row[part.names.index(column)] for part in having for row in part.rows)


def group_oracle(parts: List[Part], by: List[str], column: str) -> list:
    totals = Counter()
    for part in parts:
        if all(name in part.names for name in [*by, column]):
            indexes = [part.names.index(name) for name in by]
            at = part.names.index(column)
            for row in part.rows:
                totals[tuple(str(row[index]) for index in indexes)] += row[at]
    return sorted(totals.items(), key=lambda group: [cell.encode() for cell in group[0]])


def mean_oracle(parts: List[Part]) -> float:
    values = [row[7] for part in parts if len(part.names) > 2 for row in part.rows]
    asked = [row[5] == ASKED for part in parts if len(part.names) > 2 for row in part.rows]
    counted = [value for value, is_asked in zip(values, asked) if is_asked and value != ""]
    return sum(counted) / len(counted)


def check_oracle(server: Server, parts: List[Part]) -> Dict[str, object]:
    """The answers of a server with undamaged files, after checking that they are right."""
    answers = {question.name: question.ask(server) for question in QUESTIONS}
    for column in ("n", "m"):
        for kind in ("csv", "parquet"):
            assert answers[f"sum {column} {kind}"] == sum_oracle(parts, column)
    assert answers["group by g"] == group_oracle(parts, ["g"], "n")
    assert answers["group by q, LocationDesc"] == group_oracle(parts, ["q", "LocationDesc"], "n")
    assert answers["group by m"] == group_oracle(parts, ["m"], "n")
    mean = float(re.search(rb'"global_mean":([0-9.e+-]+)', answers["survey global_mean"])[1])
    assert abs(mean - mean_oracle(parts)) < 1e-9
    assert answers["survey mean_by_category"].count(b"('") >= 5
    assert len(answers[LIST_PARTS]) == len(parts)
    return answers


# --- damage -------------------------------------------------------------------------------------------------


class Failure(NamedTuple):
    """A wrong answer."""

    kind: str
    question: str
    damage: str
    text: str


class Tally:
    """The outcomes of all questions, by kind of file and question."""

    def __init__(self):
        self.counts = Counter()
        self.failures: List[Failure] = []

    def note(self, file_kind: str, question: str, outcome: str, damage: str, text: str) -> None:
        self.counts[(file_kind, question, outcome)] += 1
        if self.asked() % PROGRESS_ANSWERS == 0:
            print(f"{self.asked()} answers, {len(self.failures)} failures", flush=True)
        if outcome not in ("right", "told"):
            self.failures.append(Failure(outcome, question, damage, text[:300]))

    def asked(self) -> int:
        return sum(self.counts.values())

    def told(self) -> int:
        return sum(count for (_, _, outcome), count in self.counts.items() if outcome == "told")

    def report(self) -> str:
        """A line for each kind of file and question, and the first failures of each kind."""
        out = io.StringIO()
        outcomes = ["right", "told", "wrong", "blamed", "unnamed", "other", "no start"]
        out.write(f"{'file':9}{'question':27}" + "".join(f"{name:>9}" for name in outcomes) + "\n")
        rows = sorted({(kind, question) for kind, question, _ in self.counts})
        for kind, question in rows:
            counts = [self.counts[(kind, question, outcome)] for outcome in outcomes]
            out.write(f"{kind:9}{question:27}" + "".join(f"{count:9}" for count in counts) + "\n")
        total = Counter()
        for (_, _, outcome), count in self.counts.items():
            total[outcome] += count
        out.write(f"{'all':36}" + "".join(f"{total[outcome]:9}" for outcome in outcomes) + "\n")
        shown = Counter()
        for failure in self.failures:
            shown[failure.kind] += 1
            if shown[failure.kind] <= 8:
                out.write(f"{failure.kind}: {failure.question}: {failure.damage}: {failure.text}\n")
        return out.getvalue()


FILE_WORDS = {"csv": ["csv"], "parquet": ["parquet"], "json": ["receipt", "json"], "sums": ["sums", "checksums"]}


def names_file(text: str, paths: List[str], after_start: bool) -> bool:
    """Whether an error's text names the part, or the job, and the file; after a start the part is enough, because all
    of its files are in quarantine then."""
    for path in paths:
        folder, name = path.split("/")
        stem, extension = name.split(".")
        if folder == "jobs":
            if stem in text:
                return True
            continue
        has_part = re.search(rf"\bpart {stem}\b", text) is not None
        has_file = any(word in text for word in FILE_WORDS[extension])
        if has_part and (has_file or (after_start and "quarantine" in text)):
            return True
    return False


class Damage(NamedTuple):
    """Files of the data folder and their damaged content; None: the file is missing."""

    what: str
    files: Dict[str, Optional[bytes]]

    @property
    def kind(self) -> str:
        path = next(iter(self.files))
        return path.split(".")[1] if path.startswith("parts/") else "job " + path.split(".")[1]


def flip(whole: Dict[str, bytes], path: str, offset: int, mask: int) -> Damage:
    content = bytearray(whole[path])
    content[offset] ^= mask
    return Damage(f"{path}, byte {offset} ^ {mask}", {path: bytes(content)})


def random_flip(numbers: random.Random, whole: Dict[str, bytes], path: str) -> Damage:
    """A flip of a bit or of all of a byte. Every second one turns a digit into another, and half of them are near the
    ends of the file, where headers and footers are."""
    size = len(whole[path])
    anywhere = [numbers.randrange(size), numbers.randrange(size)]
    near_an_end = [numbers.randrange(min(size, 200)), size - 1 - numbers.randrange(min(size, 600))]
    offset = numbers.choice(anywhere + near_an_end)
    return flip(whole, path, offset, numbers.choice([1, 1, 1, 1, 2, 4, 8, 16, 32, 64, 128, 255]))


def other_damages(whole: Dict[str, bytes], path: str, other: str) -> List[Damage]:
    """Damage other than a flip: truncation, extension, exchange with the file of another part or job, and so on."""
    content = whole[path]
    files = {
        "last byte cut": content[:-1],
        "cut in half": content[: len(content) // 2],
        "first byte cut": content[1:],
        "emptied": b"",
        "a byte more": content + b"\n",
        "twice": content + content,
        "all zeros": bytes(len(content)),
        f"{other} over it": whole[other],
        "removed": None,
    }
    damages = [Damage(f"{path}, {what}", {path: now}) for what, now in files.items()]
    damages.append(Damage(f"{path} and {other} exchanged", {path: whole[other], other: content}))
    return damages


class Folder:
    """A data folder whose files are known, so that they can be damaged and restored."""

    def __init__(self, path: Path):
        self.path = path
        self.whole: Dict[str, bytes] = {}

    def learn(self) -> None:
        """Remembers the files, which are undamaged now."""
        self.whole = {name: (self.path / name).read_bytes() for name in self._names()}

    def _names(self) -> List[str]:
        folders = [self.path / name for name in ("parts", "jobs", "quarantine")]
        return sorted(f"{folder.name}/{entry.name}" for folder in folders for entry in folder.iterdir())

    def apply(self, damage: Damage) -> None:
        """Overwrites a file in place if the size is the same, and replaces it otherwise."""
        for name, content in damage.files.items():
            self._write(name, content)

    def put_back(self, damage: Damage) -> None:
        for name in damage.files:
            self._write(name, self.whole[name])

    def restore(self) -> None:
        """Restores all files as they were remembered, whatever a start has changed. No server may run."""
        for name in self._names():
            if name not in self.whole:
                (self.path / name).unlink()
        for name, content in self.whole.items():
            path = self.path / name
            if not path.exists() or path.read_bytes() != content:
                path.write_bytes(content)

    def _write(self, name: str, content: Optional[bytes]) -> None:
        path = self.path / name
        if content is None:
            path.unlink()
        elif path.exists() and path.stat().st_size == len(content):
            with path.open("r+b") as file:
                file.write(content)
        else:
            path.write_bytes(content)


def fill(folder: Folder, parts: List[Part]) -> Dict[str, object]:
    """A folder with these parts, whose server has stopped, and the right answers."""
    with Server(folder.path, *FLAGS) as server:
        for part in parts:
            # By the stream, which accepts any size.
            chunks = (part.csv[start : start + 256 * KIB] for start in range(0, len(part.csv), 256 * KIB))
            receipt = tally(server).Upload(tally_pb2.UploadChunk(data=chunk) for chunk in chunks)
            assert receipt.rows == len(part.rows)
        answers = check_oracle(server, parts)
        server.stop()
    for entry in (folder.path / "jobs").iterdir():  # those of the statistics just asked
        entry.unlink()
    folder.learn()
    return answers


def outcome_of(ask: Callable, expected, paths: List[str], after_start: bool = False):
    """What kind of answer it is, and its text if it is an error or wrong."""
    try:
        answer = ask()
    except Told as told:
        return ("told" if names_file(str(told), paths, after_start) else "unnamed"), str(told)
    except Blamed as blamed:
        return "blamed", str(blamed)
    except Other as other:
        return "other", str(other)
    if answer == expected:
        return "right", ""
    return "wrong", f"{answer!r:.120} instead of {expected!r:.120}"


def ask_all(
    server: Server,
    damage: Damage,
    answers: Dict[str, object],
    found: Tally,
    kinds: str = "",
    after_start: bool = False,
) -> None:
    """Asks every question that may depend on a damaged file: all of them if `kinds` is empty."""
    # A part that a start set aside is not in the list of parts; other answers show that it is missing.
    set_aside = {entry.stem for entry in (server.data / "quarantine").iterdir()}
    for question in QUESTIONS:
        if not kinds or question.kinds in kinds:
            expected = answers[question.name]
            if question.name == LIST_PARTS:
                expected = [receipt for part, receipt in enumerate(expected, 1) if str(part) not in set_aside]
            paths = list(damage.files)
            outcome, text = outcome_of(lambda q=question: q.ask(server), expected, paths, after_start)
            what = damage.what + (", restarted" if after_start else "")
            found.note(damage.kind, question.name, outcome, what, text)


def check_alive(server: Server) -> None:
    """No damage has ended the server, nor made a worker panic, nor made it take memory."""
    assert server.is_running(), server.stderr
    assert "panicked" not in server.stderr, server.stderr
    status = Path(f"/proc/{server.pid}/status").read_text()
    peak = int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * KIB
    assert peak < PEAK_BYTES_MAX, f"{peak} bytes at the most"
