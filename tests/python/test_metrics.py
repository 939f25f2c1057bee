"""`/metrics`: which metrics there are, and what they count."""

import signal

import requests
import table_pb2
import table_pb2_grpc
import tally_pb2
import tally_pb2_grpc
from conftest import KIB, table, tally
from http_calls import ANSWER_SECONDS_MAX, ask, get, metrics
from test_access import Tokens, code_of


def test_the_metrics_and_their_types(server):
    assert table(server).ColSum(table_pb2.ColSumReq(column="x", format="csv")).total == 0
    assert get(server, "/livez").status_code == 200
    lines = get(server, "/metrics").text.splitlines()
    assert {line.removeprefix("# TYPE tally_") for line in lines if line.startswith("# TYPE ")} == {
        "grpc_calls counter",
        "http_requests counter",
        "received_bytes counter",
        "spilled_bytes counter",
        "log_file_lines_dropped counter",
        "audit_lines_lost counter",
        "stderr_lines_dropped counter",
        "stderr_lines_suppressed counter",
        "parts gauge",
        "parts_max gauge",
        "unpacked_parts gauge",
        "segments gauge",
        "parts_quarantined gauge",
        "damaged_files gauge",
        "jobs gauge",
        "worker_queue_length gauge",
        "resident_memory_bytes gauge",
        "tokio_alive_tasks gauge",
    }


def test_metrics_count_what_happened(server):
    before = metrics(server)
    assert before["tally_parts"] == 0 and before["tally_received_bytes_total"] == 0
    assert before["tally_resident_memory_bytes"] > 1024 * KIB
    content = b"x,y\n1,2\n"
    assert table(server).Upload(table_pb2.UploadReq(csv_data=content)).error == ""
    assert table(server).ColSum(table_pb2.ColSumReq(column="x", format="csv")).total == 1
    assert len(list(tally(server).ListParts(tally_pb2.ListPartsRequest()))) == 1
    ask(server, "states_mean", {"question": "x"})
    ask(server, "states_mean", {})
    get(server, "/api/get_results/1")
    get(server, "/api/get_results/2")
    get(server, "/made/up/by/a/client")
    requests.request("MADE-UP", server.http + "/livez", timeout=ANSWER_SECONDS_MAX)
    after = metrics(server)
    assert after["tally_parts"] == 1 and after["tally_received_bytes_total"] == len(content)
    for name, count in {
        'tally_grpc_calls_total{method="Table/Upload",code="Ok"}': 1,
        'tally_grpc_calls_total{method="Table/ColSum",code="Ok"}': 1,
        'tally_grpc_calls_total{method="tally.v1.Tally/ListParts",code="Ok"}': 1,
        'tally_http_requests_total{route="/api/states_mean",method="POST",status="200"}': 1,
        'tally_http_requests_total{route="/api/states_mean",method="POST",status="400"}': 1,
        'tally_http_requests_total{route="/api/get_results/{job_id}",method="GET",status="200"}': 2,
        'tally_http_requests_total{route="other",method="GET",status="404"}': 1,
        'tally_http_requests_total{route="/livez",method="other",status="405"}': 1,
        'tally_worker_queue_length{lane="upload"}': 0,
        "tally_spilled_bytes_total": 0,
    }.items():
        assert after.get(name) == count, name
    assert sum(value for name, value in after.items() if name.startswith("tally_jobs{")) == 1


def test_metrics_by_the_name_of_the_token(start_server, tmp_path):
    tokens = Tokens(tmp_path)
    server = start_server(tmp_path / "data", "--token-file", tokens.list, "--quota-parts-per-day", 2)
    channel, content = server.channel(), b"x,y\n1,2\n"
    upload, pack = table_pb2_grpc.TableStub(channel).Upload, tally_pb2_grpc.TallyStub(channel).Pack
    for code in ("OK", "OK", "RESOURCE_EXHAUSTED"):
        assert code_of(upload, table_pb2.UploadReq(csv_data=content), metadata=tokens.metadata("write")) == code
    assert code_of(pack, tally_pb2.PackRequest(), metadata=tokens.metadata("write")) == "PERMISSION_DENIED"
    header = {"headers": tokens.header("admin")}
    assert requests.delete(f"{server.http}/api/v1/table/parts/1?purge=true", timeout=ANSWER_SECONDS_MAX,
                           headers=tokens.header("write")).status_code == 403  # fmt: skip
    for _ in range(3):
        assert code_of(pack, tally_pb2.PackRequest()) == "UNAUTHENTICATED"
    assert get(server, "/api/jobs", headers={"Authorization": "Bearer x"}).status_code == 401
    assert get(server, "/livez").status_code == 200

    def figures(name: str) -> tuple:
        found = metrics(server, **header)
        kinds = ("calls_total", "refused_calls_total", "added_bytes_total")
        return tuple(found.get(f'tally_token_{kind}{{token="{name}"}}') for kind in kinds)

    assert figures("write") == (5, 3, 2 * len(content))
    assert figures("read") == (0, 0, 0)
    assert figures("") == (4, 4, 0)
    assert figures("admin")[1:] == (0, 0)
    # A token that is renamed has new figures, and the old name none; another keeps its own.
    tokens.list.write_text(tokens.list.read_text().replace("read read", "viewer read"))
    server.process.send_signal(signal.SIGHUP)
    server.log_line("the tokens were read again")
    assert figures("read") == (None, None, None) and figures("viewer") == (0, 0, 0)
    assert figures("write") == (5, 3, 2 * len(content))
    lines = get(server, "/metrics", **header).text.splitlines()
    types = {line for line in lines if line.startswith("# TYPE tally_token")}
    assert types == {f"# TYPE tally_token_{kind} counter" for kind in ("calls", "refused_calls", "added_bytes")}
