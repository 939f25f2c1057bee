"""Mutual TLS between the roles."""

import shutil
import subprocess

import grpc
import pytest
from shared import step_aside, wait_until
from test_column_sums import ask, parts, status_of, total_of  # noqa: F401 (a fixture)


def openssl(*arguments) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


def flags(folder, name: str) -> list:
    """The flags of a process with a certificate of a new authority."""
    if shutil.which("openssl") is None:
        step_aside("there is no openssl")
    folder.mkdir()
    new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout"]
    ca, ca_key, cert, key = (folder / file for file in ("ca.pem", "ca.key", "cert.pem", "cert.key"))
    openssl("req", "-x509", *new_key, ca_key, "-out", ca, "-subj", "/CN=authority", "-days", 2)
    openssl("req", "-new", *new_key, key, "-out", folder / "request", "-subj", "/CN=member")
    (folder / "extensions").write_text(f"subjectAltName={name}\n")
    signing = ["-CA", ca, "-CAkey", ca_key, "-CAcreateserial", "-extfile", folder / "extensions"]
    openssl("x509", "-req", "-in", folder / "request", *signing, "-out", cert, "-days", 2)
    return ["--cluster-ca", ca, "--cluster-cert", cert, "--cluster-key", key]


def test_members_of_the_cluster_know_each_other(start_server, start_cluster, parts, tmp_path):  # noqa: F811
    tls = flags(tmp_path / "ours", "IP:127.0.0.1")
    cluster = start_cluster(parts, "", "", tls=tls)
    server = start_server(parts, "--scheduler", cluster.address, *tls)
    wait_until(lambda: isinstance(ask(server, "x", "csv"), bytes), "an answer", 60)
    for text_format in ("csv", "parquet"):
        assert total_of(server, "x", text_format) == 20_000
    server.stop()

    # Without TLS, and with the certificate of another authority.
    for other in ([], flags(tmp_path / "theirs", "IP:127.0.0.1")):
        server = start_server(parts, "--scheduler", cluster.address, *other)
        code, details = status_of(server)
        assert code == grpc.StatusCode.UNAVAILABLE and "cannot be reached" in details, details
        server.stop()


def test_no_executor_without_a_certificate_joins(start_server, start_cluster, parts, tmp_path):  # noqa: F811
    tls = flags(tmp_path / "ours", "IP:127.0.0.1")
    cluster = start_cluster(parts, tls=tls)
    executors = [cluster.start_executor(tls=()), cluster.start_executor(tls=flags(tmp_path / "theirs", "IP:127.0.0.1"))]
    for executor in executors:
        refused = ["Failed to connect to scheduler", "Executor registration failed"]
        wait_until(lambda it=executor: any(text in it.stderr for text in refused) or not it.is_running(), "it is refused")
    assert not any("registration succeed" in executor.stderr for executor in executors)
    server = start_server(parts, "--scheduler", cluster.address, *tls)
    code, details = status_of(server)
    assert code == grpc.StatusCode.UNAVAILABLE and "has no executors" in details, details


def test_other_machines_need_tls_or_a_flag(start_cluster, tmp_path):
    cluster = start_cluster(tmp_path)
    cluster.address = "0.0.0.0:0"
    with pytest.raises(AssertionError, match="other machines can reach 0.0.0.0"):
        cluster.start_scheduler()
    cluster.tls = flags(tmp_path / "ours", "IP:127.0.0.1")
    with pytest.raises(AssertionError, match="--listen names one address"):
        cluster.start_scheduler()
