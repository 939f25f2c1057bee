"""Makes the kept inputs of the fuzz targets from what a server writes: `TALLY_BINARY=... .venv/bin/python fuzz/make_corpus.py`.

An input that broke something is added by hand, under a name that says what it broke; such inputs stay.
"""

import gzip
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "python"))

import requests  # noqa: E402
from conftest import INPUTS, Server, tally, wait_until  # noqa: E402  (makes the stubs)

import table_pb2  # noqa: E402
import tally_pb2  # noqa: E402
from http_calls import PLAYS, TASKS  # noqa: E402

CORPUS = ROOT / "fuzz" / "corpus"
BYTES_MAX = 4096
FENCE_BYTES = 36
SURVEY = b"Question,LocationDesc,Data_Value,StratificationCategory1,Stratification1\nQ,Ohio,1.5,Sex,Male\n"
RECEIPT, SEGMENT, INDEX, PAGES, JOB = range(5)


def keep(target: str, name: str, content: bytes) -> None:
    folder = CORPUS / target
    folder.mkdir(parents=True, exist_ok=True)
    if len(content) <= BYTES_MAX:
        (folder / name).write_bytes(content)


def records() -> None:
    """Receipts of parts and of a segment, its index, pages of checksums, records of jobs in several states."""
    with tempfile.TemporaryDirectory() as folder, Server(Path(folder) / "data", "--undo-s", "86400") as server:
        stub = tally(server)

        def upload(content: bytes, key: str = "", **options) -> None:
            chunks = [tally_pb2.UploadChunk(options=tally_pb2.UploadOptions(**options))] if options else []
            metadata = (("idempotency-key", key),) if key else ()
            stub.Upload(iter([*chunks, tally_pb2.UploadChunk(data=content)]), metadata=metadata)

        upload(b"a,b\n1,x\n,y\n", key="a-key")
        upload(SURVEY)
        upload(b"when;ok\n2024-01-02;true\n", delimiter=";", trim=True, null=["NA"])
        stub.Pack(tally_pb2.PackRequest())
        upload(b"n\n" + b"12345\n" * 30_000)
        upload(b"t,u\n1.5,2024-01-02T03:04:05Z\n", key="another-key")
        requests.post(f"{server.http}/api/global_mean", json={"question": "Q"})
        requests.post(f"{server.http}/api/state_mean", json={"question": "Q", "state": "Ohio"})
        task = requests.post(server.http + TASKS, files={"file": ("plays.csv", PLAYS)}).json()["task"]["id"]
        requests.post(server.http + TASKS, files={"file": ("plays.csv", b"Song,Date,Number of Plays\na,b,c\n")})
        is_done = lambda: requests.get(f"{server.http}{TASKS}{task}/status").json()["task"]["status"] == "COMPLETED"  # noqa: E731
        wait_until(is_done, "a task")
        wait_until(lambda: not any(b'"queued"' in path.read_bytes() for path in (server.data / "jobs").glob("*.json")), "all jobs")
        for path in sorted((server.data / "parts").iterdir()):
            content = path.read_bytes()
            if path.suffix == ".json":
                keep("records", f"receipt-{path.stem}", bytes([RECEIPT]) + content)
            elif path.suffix == ".segment":
                keep("records", "segment", bytes([SEGMENT]) + content)
            elif path.suffix in (".sums", ".fences-sums"):
                keep("records", f"pages-{path.stem}", bytes([PAGES]) + content)
            elif path.suffix == ".index":
                fence = path.with_suffix(".fences").read_bytes()[:FENCE_BYTES]
                entries = int.from_bytes(fence[24:28], "little")
                keep("records", "entries", bytes([INDEX]) + content[:entries])
                keep("records", "receipts-of-a-segment", bytes([INDEX]) + fence[32:36] + content[entries:])
                keep("records", "fence", bytes([INDEX]) + fence)
        for number, path in enumerate(sorted((server.data / "jobs").glob("*.json"))):
            keep("records", f"job-{number}", bytes([JOB]) + path.read_bytes())
        server.stop()


def tokens() -> None:
    digits = "0123456789abcdef" * 4
    files = {
        "file": f"# who may do what\n\ningest write {digits}\n  ops.1\tadmin   {digits[::-1]}\r\n",
        "file-with-a-byte-order-mark": f"\ufeffa read {digits.upper()}",
        "file-with-a-hash-twice": f"a read {digits}\nb read {digits}\n",
    }
    for name, text in files.items():
        keep("tokens", name, b"\0" + text.encode())
    for name, value in {"known": b"Bearer 5ec7e7", "other": b"bearer x", "basic": b"Basic 5ec7e7", "spaces": b"Bearer  5ec7e7 "}.items():
        keep("tokens", f"authorization-{name}", b"\1" + value)
    for number, target in enumerate([f"/api/v1/table/parts/1/csv?ticket=0.{digits}", "/x?a=1&ticket=3.ab&b=%20&ticket=", "/?ticket"]):
        keep("tokens", f"ticket-{number}", b"\2" + target.encode())


def frames() -> None:
    def body(*messages: bytes) -> bytes:
        return b"".join(b"\0" + len(message).to_bytes(4, "big") + message for message in messages)

    options = tally_pb2.UploadChunk(options=tally_pb2.UploadOptions(delimiter=";", null=["NA"], idempotency_key="k"))
    chunk = tally_pb2.UploadChunk(data=b"x;y\n1;2\n")
    keep("frames", "one", b"\0" + body(table_pb2.UploadReq(csv_data=b"x\n1\n").SerializeToString()))
    keep("frames", "stream", b"\1" + body(chunk.SerializeToString(), chunk.SerializeToString()))
    keep("frames", "stream-with-options", b"\1" + body(options.SerializeToString(), chunk.SerializeToString()))
    keep("frames", "unknown-fields", b"\0" + body(b"\x1a\x02ab\x20\x05\x2b\x30\x01\x2c\x0a\x03x\n1"))
    keep("frames", "cut", b"\1" + body(chunk.SerializeToString())[:-3])


def dialects() -> None:
    semicolons = b"name;n\n\"a;b\";1\nNA;\n"
    keep("dialects", "semicolons", bytes([1, 6, 3, 1, 1, 0]) + semicolons)
    keep("dialects", "utf-16", bytes([2, 2, 3, 0, 0, 1]) + "naïve\tn\t\n1\t2\t\n".encode("utf-16-le"))
    keep("dialects", "windows-1252", bytes([6, 1, 3, 0, 0, 0]) + "é,n\n1,2\n".encode("cp1252"))
    keep("dialects", "gzip", bytes([1, 8, 1, 0, 0, 0]) + gzip.compress(semicolons, mtime=0) * 2)
    keep("dialects", "spaces", bytes([4, 8, 3, 2, 1, 1]) + b"a b\n 1  \n- x  \n")


def csv() -> None:
    for path in sorted(INPUTS.glob("*.csv")):
        if path.stat().st_size <= BYTES_MAX:
            keep("csv", path.stem, path.read_bytes() + bytes([0, 7]))


if __name__ == "__main__":
    for make in (records, tokens, frames, dialects, csv):
        make()
    for folder in sorted(CORPUS.iterdir()):
        print(f"{folder.name}: {len(list(folder.iterdir()))} inputs")
