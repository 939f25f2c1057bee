"""Row 10: mutated inputs from a kept corpus, over the network, and the fuzz targets of `make fuzz` where they are built. An execution of
a target counts as an input.

Whatever is sent: the answer is an answer or an error that blames the request, CSV and Parquet agree, a file that was accepted comes back byte for
byte, and nothing panics. The corpus is `tests/wild`, `inputs` and `tests/torture/corpus`, to which an input that broke something is added.
"""

import random
import re
import subprocess
import time
from typing import Callable, Dict, List

import grpc
import requests
import table_pb2
import tally_pb2
from conftest import INPUTS, Server, table, tally
from core import ROOT, TORTURE, Breach, Row, Run
from http_calls import PARTS, TASKS
from invariants import check, check_alive, check_no_leftovers
from raw_grpc import Connection, message

ANSWER_SECONDS_MAX = 30
INPUT_BYTES_MAX = 64 * 1024
SEED_BYTES_MAX = 16 * 1024
ALIVE_EVERY = 50
TOKENS = [
    b'"', b'""', b",", b";", b"\t", b"\n", b"\r", b"\r\n", b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\x80", b"\xed\xa0\x80", b"sep=;\n", b"#",
    b"9223372036854775807", b"-9223372036854775808", b"9223372036854775808", b"1e308", b"1e309", b"-0", b"NaN", b"inf", b" 1 ", b"1.5",
    b"true", b"2024-02-30", b"2024-01-01T00:00:00Z", b"{", b"}", b"[", b'{"a":', b"\\u0000", b"--B", b"\x1f\x8b\x08", b"PAR1", b"%00", b"A" * 300,
]
OPTIONS = {
    "delimiter": ["", ";", "tab", "|", "\"", "\n", "é"], "encoding": ["", "latin1", "utf-16le", "shift_jis", "nothing"],
    "decompress": ["", "gzip", "zstd", "auto"],
}  # fmt: skip
RPCS = [
    "/Table/Upload", "/Table/ColumnSum", "/Table/ColSum", "/NumStore/SetNum", "/NumStore/Fact", "/tally.v1.Tally/Upload",
    "/tally.v1.Tally/ListParts", "/tally.v1.Tally/Sum", "/tally.v1.Tally/GroupSum", "/tally.v1.Tally/RestorePart",
    "/tally.v1.Tally/ListFiles", "/grpc.health.v1.Health/Check", "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
]  # fmt: skip
MESSAGES = [
    tally_pb2.SumRequest(column="x", formats=[1, 2]).SerializeToString(),
    tally_pb2.GroupSumRequest(by=["x"], sum=["y"]).SerializeToString(),
    table_pb2.ColSumReq(column="x", format="csv").SerializeToString(),
    tally_pb2.UploadChunk(data=b"x\n1\n", options=tally_pb2.UploadOptions(delimiter=";")).SerializeToString(),
]
JSONS = [b'{"question": "Q", "state": "Ohio"}', b'{"question": "Q"}', b'{"column": "x"}', b"[]", b'"\\ud800"']
ROUTES = ["global_mean", "states_mean", "state_mean", "best5", "mean_by_category", "state_mean_by_category"]
FORM = b'--B\r\nContent-Disposition: form-data; name="file"; filename="a.csv"\r\n\r\nSong,Date,Number of Plays\na,2024-01-01,1\n\r\n--B--\r\n'
QUERIES = [b"?by=x&sum=y", b"?delimiter=tab&null=NA", b"?after=0&limit=100", b"?column=x&format=csv", b"?limit=20"]
CORPORA = ROOT / "fuzz" / "corpus"
SERVERS_FAULT = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS, grpc.StatusCode.UNAVAILABLE}


def kept_corpus() -> List[bytes]:
    folders = [ROOT / "tests" / "wild", INPUTS, TORTURE / "corpus"]
    paths = sorted(path for folder in folders if folder.is_dir() for path in folder.iterdir() if path.is_file())
    return [path.read_bytes() for path in paths if path.stat().st_size <= SEED_BYTES_MAX]


def mutated(choices: random.Random, seeds: List[bytes]) -> bytes:
    content = bytearray(choices.choice(seeds))
    for _ in range(choices.choice([0, 1, 1, 2, 4, 8])):
        at = choices.randrange(len(content) + 1)
        end = min(len(content), at + choices.choice([1, 1, 4, 30, 1000]))
        way = choices.randrange(6)
        if way == 0 and at < len(content):
            content[at] ^= 1 << choices.randrange(8)
        elif way == 1:
            content[at:at] = choices.choice(TOKENS)
        elif way == 2:
            del content[at:end]
        elif way == 3:
            content[at:at] = content[at:end] * choices.choice([1, 2, 50])
        elif way == 4:
            other = choices.choice(seeds)
            start = choices.randrange(len(other) + 1)
            content[at:end] = other[start : start + choices.randrange(200)]
        else:
            content[at:end] = choices.choice(TOKENS)
    return bytes(content[:INPUT_BYTES_MAX])


class Targets:
    """What a mutated input is sent to."""

    def __init__(self, server: Server, choices: random.Random, is_sabotaged: bool):
        self.server, self.choices = server, choices
        self.is_sabotaged = is_sabotaged
        self.csvs = kept_corpus()
        self.session = requests.Session()
        self.targets: Dict[str, Callable[[bytes], None]] = {
            "csv": self.csv, "dialects": self.dialect, "gRPC messages": self.grpc_message, "JSON": self.json, "multipart": self.form, "queries": self.query,
        }  # fmt: skip
        self.seeds = {
            "csv": self.csvs, "dialects": self.csvs, "gRPC messages": MESSAGES, "JSON": JSONS, "multipart": [FORM], "queries": QUERIES,
        }  # fmt: skip

    def csv(self, content: bytes) -> None:
        self._upload(content, None)

    def dialect(self, content: bytes) -> None:
        options = {name: self.choices.choice(values) for name, values in OPTIONS.items() if self.choices.random() < 0.5}
        null = self.choices.choice([[], ["NA"], ["", "x"]])
        flags = {"trim": self.choices.random() < 0.5, "drop_trailing_empty": self.choices.random() < 0.5}
        self._upload(content, tally_pb2.UploadOptions(null=null, **flags, **options))

    def _upload(self, content: bytes, options) -> None:
        stub = tally(self.server)
        sent = [tally_pb2.UploadChunk(options=options)] if options else []
        # With --prove a line is lost on the way.
        kept, content = content, content[: content.rfind(b"\n")] if self.is_sabotaged else content
        cut = self.choices.randrange(len(content) + 1)
        sent += [tally_pb2.UploadChunk(data=piece) for piece in (content[:cut], content[cut:]) if piece]
        try:
            receipt = stub.Upload(iter(sent), timeout=ANSWER_SECONDS_MAX)
        except grpc.RpcError as error:
            check(error.code() == grpc.StatusCode.INVALID_ARGUMENT, f"{error.code()}: {error.details()}")
            return
        if options is None:
            answer = self.session.get(f"{self.server.http}{PARTS}/{receipt.part}/csv", timeout=ANSWER_SECONDS_MAX)
            check(answer.content == kept, f"part {receipt.part} is not what was sent")
        for column in list(receipt.columns)[:4]:
            self._compare(column.name)
        stub.RemovePart(tally_pb2.RemovePartRequest(part=receipt.part, purge=True), timeout=ANSWER_SECONDS_MAX)

    def _compare(self, column: str) -> None:
        answers = []
        for file_format in ("csv", "parquet"):
            request = table_pb2.ColSumReq(column=column, format=file_format)
            try:
                answer = table(self.server).ColumnSum(request, timeout=ANSWER_SECONDS_MAX)
                answers.append((answer.total, answer.error))
            except grpc.RpcError as error:
                check(error.code() == grpc.StatusCode.INVALID_ARGUMENT, f"sum of {column!r}: {error.code()}: {error.details()}")
                answers.append((error.code(), error.details()))
        check(answers[0] == answers[1], f"sums of {column!r} differ: {answers}")

    def grpc_message(self, content: bytes) -> None:
        path = self.choices.choice(RPCS)
        with Connection(self.server) as connection:
            call = connection.call(path, message(content, more=self.choices.choice([0, 0, 0, 1, -1])) if len(content) else b"")
        check(call.status is not None or call.reset is not None, f"{path}: neither a status nor a reset")
        bad = {code.value[0] for code in SERVERS_FAULT if code != grpc.StatusCode.INTERNAL}
        check(call.status not in bad, f"{path}: {call.headers}")

    def json(self, content: bytes) -> None:
        url = f"{self.server.http}/api/{self.choices.choice(ROUTES)}"
        self._judge(self.session.post(url, data=content, headers={"Content-Type": "application/json"}, timeout=ANSWER_SECONDS_MAX))

    def form(self, content: bytes) -> None:
        headers = {"Content-Type": "multipart/form-data; boundary=B"}
        self._judge(self.session.post(self.server.http + TASKS, data=content, headers=headers, timeout=ANSWER_SECONDS_MAX))

    def query(self, content: bytes) -> None:
        path = self.choices.choice([PARTS, f"{PARTS}/1/rows", "/api/v1/table/sum", "/api/v1/table/groups", "/api/v1/table/columns"])
        text = content.decode("latin1").replace("#", "%23")[:4000]
        text = re.sub(r"[\x00-\x20\x7f-\xff]", lambda match: f"%{ord(match[0]):02X}", text)
        self._judge(self.session.get(f"{self.server.http}{path}?{text.lstrip('?')}", timeout=ANSWER_SECONDS_MAX))

    def _judge(self, answer: requests.Response) -> None:
        check(answer.status_code < 500 or answer.status_code == 503, f"{answer.status_code}: {answer.text[:300]}")
        if answer.status_code in (429, 503):
            time.sleep(0.05)


def over_the_network(run: Run) -> None:
    with Server(run.folder / "data", "--durability", "none", "--log", "error", "--jobs-age-s", "1", "--jobs-sweep-s", "1") as server:
        tally(server).Upload(iter([tally_pb2.UploadChunk(data=b"k,v\na,1\n")]))
        targets = Targets(server, run.choices, run.is_sabotaged)
        names = list(targets.targets)
        # In the full form the targets have made most of the inputs.
        for number in run.rounds(max(run.row.short, run.amount - run.done)):
            name = names[number % len(names)]
            content = mutated(run.choices, targets.seeds[name])
            try:
                targets.targets[name](content)
                if number % ALIVE_EVERY == 0:
                    check_alive(server)
            except (AssertionError, grpc.RpcError, requests.exceptions.RequestException, OSError) as error:
                path = run.folder / f"{name.replace(' ', '-')}-{number}"
                path.write_bytes(content)
                raise Breach(f"{name}, input {number}, kept as {path}: {error}") from None
            run.figures[name] += 1
        check_alive(server)
        check_no_leftovers(server)
        server.stop()


def built_targets(run: Run) -> None:
    """The targets of `make fuzz`: the kept corpus once in the short form, and for a share of the time in the full one."""
    names = sorted(path.stem for path in (ROOT / "fuzz" / "src" / "bin").glob("*.rs"))
    programs = [path for name in names for path in (ROOT / "target" / "fuzz").glob(f"*/release/{name}")]
    if len(programs) < len(names):
        missing = sorted(set(names) - {path.name for path in programs})
        run.note(f"not built here, see `make fuzz-build`: {', '.join(missing)}")
    is_full = run.amount >= run.row.full
    for number, program in enumerate(programs):
        found = run.folder / program.name
        found.mkdir()
        # The last share is that of the inputs over the network.
        seconds = run.seconds_left(3600) / (len(programs) - number + 1)
        limit = f"-max_total_time={max(1, int(seconds))}" if is_full else "-runs=0"
        corpora = [path for path in (CORPORA / program.name, INPUTS) if path.is_dir()]
        options = [limit, "-max_len=8192", "-print_final_stats=1", f"-seed={run.seed + 1}", f"-artifact_prefix={run.folder}/"]
        done = subprocess.run([str(word) for word in (program, *options, found, *corpora)], capture_output=True, text=True)
        check(done.returncode == 0, f"{program.name}: {done.stderr[-3000:]}")
        executions = re.search(r"stat::number_of_executed_units:\s*(\d+)", done.stderr)
        count = int(executions[1]) if executions else 0
        run.figures[f"executions of {program.name}"] += count
        run.done += count


def fuzz(run: Run) -> None:
    built_targets(run)
    over_the_network(run)


ROW = Row(10, "fuzz", "mutated CSV, dialects, gRPC messages, JSON, forms and queries from a kept corpus", "inputs", 5_000, 10_000_000, 10, fuzz, 7)
