"""Files that are not plain CSV, with options: over gRPC, over HTTP, by `tally upload` and by `--load`. What is stored is the
CSV that they mean, and the receipt says what came.
"""

import gzip
import json
import subprocess

import grpc
import pyarrow
import pytest
import requests
import table_pb2
import tally_pb2
import xxhash
from conftest import KIB, Server, ServerDidNotStart, binary, clean_environment, table, tally, wait_until
from http_calls import PARTS, check_problem

SECONDS_MAX = 60
PIECE_BYTES = 100_000

EXPORT = "Straße;Menge ;;\r\nBäcker;1,5;;\r\nHaupt; NA ;;\r\n".encode("windows-1252")
EXPORT_OPTIONS = {
    "delimiter": ";",
    "encoding": "latin1",
    "null": ["NA"],
    "trim": True,
    "drop_trailing_empty": True,
}
EXPORT_CSV = 'Straße,Menge\r\nBäcker,"1,5"\r\nHaupt,\r\n'.encode()
EXPORT_SOURCE = {
    **EXPORT_OPTIONS,
    "encoding": "windows-1252",
    "bytes": len(EXPORT),
    "xxh3": xxhash.xxh3_64_hexdigest(EXPORT),
}


def zstd(content: bytes, level: int = 3) -> bytes:
    return pyarrow.Codec("zstd", compression_level=level).compress(content, asbytes=True)


def stored(server: Server, part: int) -> bytes:
    return (server.data / "parts" / f"{part}.csv").read_bytes()


def chunks(content: bytes, options: dict, first_data: bytes = b""):
    yield tally_pb2.UploadChunk(data=first_data, options=tally_pb2.UploadOptions(**options))
    for at in range(0, len(content), PIECE_BYTES):
        yield tally_pb2.UploadChunk(data=content[at : at + PIECE_BYTES])


def send_grpc(server: Server, content: bytes, **options) -> tally_pb2.Receipt:
    return tally(server).Upload(chunks(content, options), timeout=SECONDS_MAX)


def refused_grpc(server: Server, content: bytes, **options) -> str:
    with pytest.raises(grpc.RpcError) as refused:
        send_grpc(server, content, **options)
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT, refused.value
    return refused.value.details()


def send_http(server: Server, content, path: str = PARTS, **options) -> requests.Response:
    params = {name: str(value).lower() if isinstance(value, bool) else value for name, value in options.items()}
    return requests.post(server.http + path, data=content, params=params, timeout=SECONDS_MAX)


def upload(server: Server, *arguments, **options) -> subprocess.CompletedProcess:
    command = [binary(), "upload", "--server", server.address, *map(str, arguments)]
    return subprocess.run(command, env=clean_environment(), capture_output=True, timeout=SECONDS_MAX, **options)


def sum_of(server: Server, column: str) -> int:
    answer = table(server).ColumnSum(table_pb2.ColSumReq(column=column, format="parquet"))
    assert answer.error == "", answer.error
    return answer.total


def parts_json(server: Server) -> list:
    command = [binary(), "parts", "--json", "--server", server.address]
    lines = subprocess.run(command, env=clean_environment(), capture_output=True, check=True, timeout=SECONDS_MAX)
    return [json.loads(line) for line in lines.stdout.splitlines()]


def test_every_surface_stores_the_same_csv_and_receipt(start_server, tmp_path):
    (tmp_path / "export.csv").write_bytes(EXPORT)
    flags = ["delimiter=;", "encoding=latin1", "null=NA", "trim", "drop-trailing-empty"]
    load = [f"--load-{flag}" for flag in flags]
    server = start_server(tmp_path / "data", "--load", tmp_path / "export.csv", *load)
    send_grpc(server, EXPORT, **EXPORT_OPTIONS)
    raw = send_http(server, EXPORT, **EXPORT_OPTIONS)
    assert raw.status_code == 201, raw.text
    params = {**EXPORT_OPTIONS, "trim": "true", "drop_trailing_empty": "true"}
    files = {"file": ("export.tsv", EXPORT)}
    form = requests.post(f"{server.http}{PARTS}/", files=files, params=params, timeout=SECONDS_MAX)
    assert form.status_code == 201, form.text
    sent = upload(server, *(f"--{flag}" for flag in flags), "--json", tmp_path / "export.csv")
    assert sent.returncode == 0, sent.stderr

    listed = parts_json(server)
    assert [part["part"] for part in listed] == [1, 2, 3, 4, 5]
    for part in listed:
        assert stored(server, part["part"]) == EXPORT_CSV
        assert part["source"] == EXPORT_SOURCE
        kept = json.loads((server.data / "parts" / f"{part['part']}.json").read_bytes())
        assert kept["source"] == EXPORT_SOURCE
    assert [raw.json(), form.json()] == listed[2:4]
    assert {name: value for name, value in json.loads(sent.stdout).items() if name != "file"} == listed[4]


def test_without_options_the_bytes_are_stored_as_they_are(server):
    odd = '\ufeff\n"a" ,b;c\r1,\n'.encode().replace(b'"a" ', b'"a"')
    tally(server).Upload(iter([tally_pb2.UploadChunk(data=odd)]))
    tally(server).Upload(chunks(odd, {}))
    send_grpc(server, odd, encoding="", delimiter="", null=[])
    assert send_http(server, odd).status_code == 201
    assert send_http(server, odd, trim=False).status_code == 201
    for part in range(1, 6):
        assert stored(server, part) == odd
    assert all("source" not in part for part in parts_json(server))


def test_unary_uploads_have_no_options(server):
    # Field 2 is unknown there, as before.
    options = tally_pb2.UploadChunk(data=b"a;b\n1;2\n", options=tally_pb2.UploadOptions(delimiter=";"))
    unary = server.channel().unary_unary(
        "/Table/Upload",
        request_serializer=tally_pb2.UploadChunk.SerializeToString,
        response_deserializer=table_pb2.UploadResp.FromString,
    )
    assert "--delimiter" in unary(options, timeout=SECONDS_MAX).error


def test_large_files_are_rewritten_while_they_arrive(server):
    rows = 400_000
    text = "n;t\n" + "".join(f"{row};x,{row % 10}\n" for row in range(rows))
    csv = "n,t\n" + "".join(f'{row},"x,{row % 10}"\n' for row in range(rows))
    utf_16 = text.encode("utf-16")
    for content, options in [
        (text.encode(), {}),
        (utf_16, {"encoding": "utf-16"}),
        (gzip.compress(text.encode(), 1), {"decompress": "gzip"}),
        (gzip.compress(text[:1000].encode()) + gzip.compress(text[1000:].encode(), 1), {"decompress": "auto"}),
        (zstd(utf_16, 9), {"decompress": "auto", "encoding": "utf-16le"}),
    ]:
        receipt = send_grpc(server, content, delimiter=";", **options)
        assert receipt.rows == rows and receipt.source.file.bytes == len(content)
        assert stored(server, receipt.part) == csv.encode(), options
        answer = send_http(server, content, delimiter=";", **options)
        assert answer.status_code == 201, answer.text
        assert answer.json()["csv"]["xxh3"] == receipt.csv.xxh3
    assert sum_of(server, "n") == 10 * (rows * (rows - 1) // 2)
    assert list((server.data / "tmp").iterdir()) == []


def test_compressed_plain_csv_is_stored_decompressed(server, tmp_path):
    numbers = b"n\n" + b"7\n" * 1_000_000
    names = {"a.csv": numbers, "b.csv.gz": gzip.compress(numbers), "c.csv.ZST": zstd(numbers)}
    for name, content in names.items():
        (tmp_path / name).write_bytes(content)
    sent = upload(server, "--parallel", 1, "--decompress", "name", "--json", *(tmp_path / name for name in names))
    assert sent.returncode == 0, sent.stderr
    for part, name in enumerate(names, 1):
        assert stored(server, part) == numbers
        source = json.loads(sent.stdout.splitlines()[part - 1]).get("source")
        assert (source is None) == (name == "a.csv")
    assert sum_of(server, "n") == 3 * 7_000_000
    # Many at once: two are decompressed, the others wait.
    many = [tally(server).Upload.future(chunks(names["c.csv.ZST"], {"decompress": "zstd"})) for _ in range(12)]
    assert [call.result(SECONDS_MAX).rows for call in many] == [1_000_000] * 12


def test_a_file_with_another_separator_is_accepted_with_it(server):
    text = b"a;b|c\n1;2|3\n"
    assert "--delimiter" in refused_grpc(server, text)
    assert "--delimiter" in refused_grpc(server, text, trim=True)
    assert send_grpc(server, text, delimiter=",").rows == 1
    assert stored(server, 1) == b'"a;b|c"\n"1;2|3"\n'
    assert send_http(server, text, delimiter="tab").status_code == 201
    # What is stored then needs no options.
    assert send_http(server, stored(server, 1)).status_code == 201
    assert send_http(server, text).status_code == 400


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"delimiter": ";;"}, 'delimiter ";;": it is one ASCII character other than a quote, a line end and NUL'),
        ({"delimiter": '"'}, "it is one ASCII character other than a quote"),
        ({"encoding": "klingon"}, 'encoding "klingon": it is a name of the WHATWG Encoding Standard'),
        ({"decompress": "xz"}, 'decompress "xz": it is gzip, zstd or auto'),
        ({"null": ["x"] * 33}, "null has 33 texts of 33 bytes together: at most 32 of 1024 bytes are allowed"),
    ],
)
def test_options_that_do_not_exist_are_refused_with_what_is_allowed(server, tmp_path, options, text):
    assert text in refused_grpc(server, b"a\n1\n", **options)
    answer = send_http(server, b"a\n1\n", **options)
    (field,) = options
    check_problem(answer, 400, field, text)
    (tmp_path / "a.csv").write_bytes(b"a\n1\n")
    values = options[field] if isinstance(options[field], list) else [options[field]]
    flags = [word for value in values for word in (f"--{field}", value)]
    sent = upload(server, *flags, tmp_path / "a.csv")
    expected = "it is gzip, zstd, auto or name" if field == "decompress" else text
    assert sent.returncode == 2 and expected in sent.stderr.decode()
    assert parts_json(server) == []


def test_load_refuses_values_and_files(start_server, tmp_path):
    (tmp_path / "a.csv").write_bytes(b"a\nb\xff\n")
    for flag, value, text in [
        ("--load-delimiter", "xy", "it is one ASCII character"),
        ("--load-null", "x" * 1025, "--load-null: null has 1 texts of 1025 bytes"),
        ("--load-encoding", "utf-8", "byte 3 of the file is not valid UTF-8"),
    ]:
        with pytest.raises(ServerDidNotStart) as refused:
            start_server(tmp_path / "data", "--load", tmp_path / "a.csv", flag, value)
        assert text in refused.value.stderr


def test_a_loaded_file_is_not_loaded_again(start_server, tmp_path):
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"a;b\n1;2\n"))
    flags = ["--load", tmp_path / "a.csv.gz", "--load-delimiter", ";", "--load-decompress", "auto"]
    for _ in range(2):
        server = start_server(tmp_path / "data", *flags)
        assert [part["rows"] for part in parts_json(server)] == [1]
        server.stop()
    # With another dialect it means another table.
    server = start_server(tmp_path / "data", *flags, "--load-null", "2")
    assert [part["part"] for part in parts_json(server)] == [1, 2]


def test_parameters_and_bodies_of_http(server):
    def failure(answer: requests.Response, status: int) -> tuple:
        field = answer.json().get("field")
        return field, check_problem(answer, status, field, "")["detail"]

    field, message = failure(send_http(server, b"a\n1\n", separator=";"), 400)
    assert field == "query" and 'no parameter "separator"' in message and "drop_trailing_empty" in message
    assert failure(send_http(server, b"a\n1\n", trim="yes"), 400) == ("trim", 'trim "yes": it is true or false')
    assert failure(send_http(server, b"a\n1\n", delimiter=[";", ";"]), 400) == ("delimiter", "delimiter: it occurs twice")
    assert failure(send_http(server, b"a\n1,2\n"), 400)[0] == "file"
    encoded = requests.post(
        server.http + PARTS, data=b"x", headers={"Content-Encoding": "br"}, timeout=SECONDS_MAX
    )
    field, message = failure(encoded, 415)
    assert field == "Content-Encoding" and "send gzip, zstd, or the file as it is" in message
    no_file = requests.post(server.http + PARTS, files={"other": ("a.csv", b"a\n1\n")}, timeout=SECONDS_MAX)
    other = 'the form has a field "other" that is not a file named "file": options are query parameters'
    assert failure(no_file, 400) == ("file", other)
    for second, refused in [(("b", ("b.csv", b"a\n2\n")), 'field "b"'), (("trim", (None, "true")), 'field "trim"')]:
        form = [("file", ("a.csv", b"a\n1\n")), second]
        answer = requests.post(server.http + PARTS, files=form, timeout=SECONDS_MAX)
        assert refused in failure(answer, 400)[1]
    foreign = requests.post(
        server.http + PARTS, data=b"a\n1\n", headers={"Sec-Fetch-Site": "cross-site"}, timeout=SECONDS_MAX
    )
    assert failure(foreign, 403)[0] is None
    assert failure(requests.put(server.http + PARTS, timeout=SECONDS_MAX), 405)[0] is None
    assert parts_json(server) == []

    # A body of unknown length, in pieces.
    pieces = iter([b"a,b", b"\n1,", b"2\n"])
    assert requests.post(server.http + PARTS + "/", data=pieces, timeout=SECONDS_MAX).json()["rows"] == 1


def test_a_refused_body_does_not_hide_the_answer(server):
    # A row that is wrong, and then more than the connection buffers.
    answer = send_http(server, b"a\n1,2\n" + b"3\n" * 2_000_000, delimiter=";", trim=True, decompress="gzip")
    assert answer.status_code == 400 and "not valid gzip" in answer.text
    answer = send_http(server, b"a\n\xff\n" + b"3\n" * 2_000_000, encoding="utf-8")
    assert answer.status_code == 400 and "byte 2 of the file is not valid UTF-8" in answer.text
    assert list((server.data / "tmp").iterdir()) == []


def test_options_after_data_are_refused(server):
    for messages in [
        [tally_pb2.UploadChunk(data=b"a\n"), tally_pb2.UploadChunk(options=tally_pb2.UploadOptions(trim=True))],
        # protobuf writes field 1 first.
        list(chunks(b"", {"trim": True}, first_data=b"a\n1\n")),
        [*chunks(b"", {"trim": True}), *chunks(b"a\n", {"trim": True})],
    ]:
        with pytest.raises(grpc.RpcError) as refused:
            tally(server).Upload(iter(messages), timeout=SECONDS_MAX)
        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert "field 2, the options, comes in the first message" in refused.value.details()
    long = {"null": ["x" * 5000]}
    assert "options, is 5" in refused_grpc(server, b"a\n1\n", **long)


def test_undecodable_bytes_and_damaged_files_say_where(server):
    assert refused_grpc(server, b"a\n1\xff\n", encoding="utf-8") == "byte 3 of the file is not valid UTF-8"
    damaged = bytearray(gzip.compress(b"k,x\n" + b"a,1\n" * 50_000))
    damaged[-6] ^= 1
    assert refused_grpc(server, bytes(damaged), decompress="gzip").startswith("the file is not valid gzip: ")
    error = refused_grpc(server, zstd(b"a\n" + b"1\n" * 8_000_000, 20), decompress="auto")
    assert error.endswith("windows of up to 8 MiB are read")
    assert "row 2 (line 3) has 3 cells, the header has 2" in refused_grpc(server, b"a;b\n1;2\n1;2;3\n", delimiter=";")
    assert list((server.data / "tmp").iterdir()) == []


def test_the_limit_holds_for_what_comes_out(start_server, tmp_path):
    server = start_server(tmp_path / "data", "--upload-bytes-max", 10_000_000)
    before = server.anonymous_bytes()
    for bomb in (gzip.compress(b" " * 200_000_000), zstd(b" " * 200_000_000)):
        for options in ({}, {"trim": True}):
            with pytest.raises(grpc.RpcError) as refused:
                send_grpc(server, bomb, decompress="auto", **options)
            assert refused.value.details() == "the upload has more than 10000000 bytes"
    # Rewritten text can be longer than what came.
    quotes = b"a;b\n" + b",;,\n" * 2_000_000
    assert "more than 10000000 bytes" in refused_grpc(server, quotes, delimiter=";")
    assert server.anonymous_bytes() - before < 64 * 1024 * KIB
    # A worker removes the draft, perhaps after the answer.
    wait_until(lambda: list((server.data / "tmp").iterdir()) == [], "an empty tmp/")
