"""The files of a part over HTTP: whole and in ranges, byte for byte, and never a byte that is not what was stored."""

import random
import shutil

import pytest
import requests
from conftest import KIB, ROOT, Server
from http_calls import ANSWER_SECONDS_MAX, PARTS, check_problem, get

ROWS = 40_000
TYPES = {"csv": "text/csv; charset=utf-8", "parquet": "application/vnd.apache.parquet"}
SEED = 20261130


def upload(server: Server, content: bytes) -> int:
    answer = requests.post(server.http + PARTS, data=content, timeout=ANSWER_SECONDS_MAX)
    assert answer.status_code == 201, answer.text
    return answer.json()["part"]


@pytest.fixture(scope="module")
def large_csv() -> bytes:
    """Several blocks of CSV, and of Parquet, which text that cannot be compressed makes as long."""
    numbers = random.Random(SEED)
    rows = (f"{row},{numbers.getrandbits(256):x},{numbers.getrandbits(60)}\n" for row in range(ROWS))
    return ("n,t,u\n" + "".join(rows)).encode()


def stored(server: Server, part: int, kind: str) -> bytes:
    return (server.data / "parts" / f"{part}.{kind}").read_bytes()


def fetch(server: Server, part: int, kind: str, **headers) -> requests.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return get(server, f"{PARTS}/{part}/{kind}", headers=named)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_download_is_the_stored_file(server, large_csv, kind):
    for content in (b"x\n1\n", large_csv, b"x\n"):
        part = upload(server, content)
        expected = stored(server, part, kind)
        answer = fetch(server, part, kind)
        assert answer.status_code == 200 and answer.content == expected
        assert kind == "parquet" or answer.content == content
        receipt = get(server, f"{PARTS}/{part}").json()
        tag = f'"{receipt[kind]["xxh3"]}"'
        named = {
            "Content-Type": TYPES[kind],
            "Content-Length": str(len(expected)),
            "Content-Disposition": f'attachment; filename="{part}.{kind}"',
            "Accept-Ranges": "bytes",
            "ETag": tag,
            "X-Content-Type-Options": "nosniff",
        }
        assert {name: answer.headers[name] for name in named} == named
        head = requests.head(f"{server.http}{PARTS}/{part}/{kind}", timeout=ANSWER_SECONDS_MAX)
        assert head.status_code == 200 and head.content == b""
        assert {name: head.headers[name] for name in named} == named

        for known in (tag, f'"other", W/{tag}', "*"):
            unchanged = fetch(server, part, kind, If_None_Match=known)
            assert (unchanged.status_code, unchanged.content, unchanged.headers["ETag"]) == (304, b"", tag)
        assert fetch(server, part, kind, If_None_Match='"other"').content == expected
        assert fetch(server, part, kind, Range="bytes=0-0", If_Range=tag).content == expected[:1]
        assert fetch(server, part, kind, Range="bytes=0-0", If_Range='"other"').content == expected


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_ranges_are_those_of_the_stored_file(server, large_csv, kind):
    part = upload(server, large_csv)
    expected = stored(server, part, kind)
    size = len(expected)
    assert size > 2 * 256 * KIB, "several blocks"
    numbers = random.Random(SEED)
    ranges = [(0, 0), (0, 3), (2, 5), (size - 1, size - 1), (size - 9, size - 1), (0, size - 1)]
    ranges += [(256 * KIB + 3, 256 * KIB + 4), (64 * KIB - 1, 64 * KIB), (size // 2, size // 2 + 300 * KIB)]
    ranges += [tuple(sorted(numbers.sample(range(size), 2))) for _ in range(25)]
    for first, last in ranges:
        answer = fetch(server, part, kind, Range=f"bytes={first}-{last}")
        assert answer.status_code == 206, (first, last)
        assert answer.headers["Content-Range"] == f"bytes {first}-{min(last, size - 1)}/{size}"
        assert answer.content == expected[first : last + 1], (first, last)
    assert fetch(server, part, kind, Range="bytes=-10").content == expected[-10:]
    answer = fetch(server, part, kind, Range=f"bytes={size}-")
    check_problem(answer, 416, "Range", f"the file has {size} bytes")
    assert answer.headers["Content-Range"] == f"bytes */{size}"


def damage(server: Server, part: int, kind: str, offset: int) -> None:
    with open(server.data / "parts" / f"{part}.{kind}", "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize("is_large", [False, True])
def test_a_damaged_file_is_a_problem_before_a_byte_is_sent(server, large_csv, kind, is_large):
    part = upload(server, large_csv if is_large else b"x\n1\n2\n")
    size = len(stored(server, part, kind))
    damage(server, part, kind, 5)
    for headers in ({}, {"Range": "bytes=0-9"}):
        problem = check_problem(fetch(server, part, kind, **headers), 500, None, f"part {part} is damaged: ")
        assert problem["part"] == part and kind in problem["detail"]
    if is_large:  # bytes that are not damaged can still be fetched
        last = fetch(server, part, kind, Range=f"bytes={size - 20}-")
        assert last.status_code == 206 and last.content == stored(server, part, kind)[-20:]
    if kind == "parquet":
        damage(server, part, kind, size - 30)  # the footer, without which no chunk can be verified
        check_problem(fetch(server, part, kind, Range=f"bytes={size - 20}-"), 500, None, "is damaged")
    (server.data / "parts" / f"{part}.{kind}").unlink()
    assert fetch(server, part, kind).status_code == 500


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_damage_in_the_middle_cuts_the_answer_off_before_it(server, large_csv, kind):
    part = upload(server, large_csv)
    before = stored(server, part, kind)
    at = len(before) // 2
    damage(server, part, kind, at)
    received = b""
    with pytest.raises(requests.exceptions.RequestException):
        url = f"{server.http}{PARTS}/{part}/{kind}"
        with requests.get(url, stream=True, timeout=ANSWER_SECONDS_MAX) as answer:
            assert answer.status_code == 200
            for piece in answer.iter_content(16 * KIB):
                received += piece
            assert len(received) == len(before), "the answer was cut off"
            raise AssertionError("the whole file came, though it is damaged")
    assert received == before[: len(received)] and len(received) <= at
    # The server goes on, and other ranges are what was stored.
    assert fetch(server, part, kind, Range=f"bytes=0-{64 * KIB - 1}").content == before[: 64 * KIB]
    check_problem(fetch(server, part, kind, Range=f"bytes={at}-{at}"), 500, None, f"part {part} is damaged")


def test_a_damaged_receipt_is_a_problem_of_its_part(server):
    for row in range(3):
        upload(server, f"x\n{row}\n".encode())
    (server.data / "parts" / "2.json").write_bytes(b"{}")
    for path in (f"{PARTS}/2", f"{PARTS}/2/csv", f"{PARTS}/2/parquet"):
        assert check_problem(get(server, path), 500, None, "part 2 is damaged: receipt")["part"] == 2
    assert get(server, f"{PARTS}/3/csv").text == "x\n2\n"


def test_a_part_that_is_removed_during_its_download_is_sent_whole(server, large_csv):
    part = upload(server, large_csv)
    url = f"{server.http}{PARTS}/{part}"
    with requests.get(f"{url}/csv", stream=True, timeout=ANSWER_SECONDS_MAX) as answer:
        pieces = answer.iter_content(16 * KIB)
        received = next(pieces)
        assert requests.delete(url, timeout=ANSWER_SECONDS_MAX).status_code == 200
        received += b"".join(pieces)
    assert received == large_csv


def test_parts_of_format_version_1_are_verified_before_they_are_sent(start_server, tmp_path):
    """Such parts have no checksums of blocks until they are first used."""
    shutil.copytree(ROOT / "tests" / "data" / "format-1", tmp_path / "data")
    server = start_server(tmp_path / "data")
    parts = get(server, PARTS).json()["parts"]
    assert len(parts) == 3
    for part in parts:
        for kind in ("csv", "parquet"):
            assert fetch(server, part["part"], kind).content == stored(server, part["part"], kind)
        assert get(server, f"{PARTS}/{part['part']}/rows").json()["rows"]
