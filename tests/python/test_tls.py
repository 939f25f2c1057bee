"""TLS on both ports: certificates of the server and of clients, read again at SIGHUP, and slow handshakes."""

import contextlib
import shutil
import signal
import socket
import ssl
import subprocess
import time

import grpc
import pytest
import requests
import table_pb2
import table_pb2_grpc
import tally_pb2
import tally_pb2_grpc
from conftest import CHANNEL_OPTIONS, ServerDidNotStart, run_client, step_aside, wait_until
from http_calls import ANSWER_SECONDS_MAX
from test_access import CSV, Tokens, code_of, run_tally

SLOW_CLIENTS = 200
HANDSHAKE_SECONDS_MAX = 10


class Authority:
    """Signs certificates, with openssl."""

    def __init__(self, folder, name: str = "authority"):
        if shutil.which("openssl") is None:
            step_aside("there is no openssl")
        self.folder, self.pem, self.key = folder, folder / f"{name}.pem", folder / f"{name}.key"
        self._openssl("req", "-x509", *self._new_key(self.key), "-out", self.pem, "-subj", f"/CN={name}", "-days", 2)

    def _openssl(self, *arguments) -> None:
        subprocess.run(["openssl", *(str(argument) for argument in arguments)], check=True, capture_output=True)

    def _new_key(self, path) -> list:
        return ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", path]

    def sign(self, file_name: str, *names: str, days: int = 2, more: str = "", by: tuple = ()) -> tuple:
        """The paths of a certificate with these subject alternative names and more extensions, and of its key. It is signed by
        the authority, or with another certificate."""
        signing_pem, signing_key = by or (self.pem, self.key)
        pem, key, request = (self.folder / f"{file_name}.{suffix}" for suffix in ("pem", "key", "request"))
        self._openssl("req", "-new", *self._new_key(key), "-out", request, "-subj", f"/CN={file_name}")
        alternatives = f"subjectAltName={','.join(names)}\n" if names else ""
        (self.folder / "extensions").write_text(alternatives + more)
        signing = ["-CA", signing_pem, "-CAkey", signing_key, "-CAcreateserial", "-extfile", self.folder / "extensions"]
        self._openssl("x509", "-req", "-in", request, *signing, "-out", pem, "-days", days)
        return pem, key


@pytest.fixture
def authority(tmp_path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def tokens(tmp_path) -> Tokens:
    return Tokens(tmp_path)


@pytest.fixture
def start_tls(start_server, authority, tmp_path):
    """Starts a server with TLS, which is localhost."""

    def start(*flags):
        certificate, key = authority.sign("server", "DNS:localhost", "IP:127.0.0.1")
        return start_server(tmp_path / "data", "--tls-cert", certificate, "--tls-key", key, *flags)

    return start


@contextlib.contextmanager
def channel_to(server, authority, identity=None):
    """A new connection, which shows a certificate if there is one."""
    files = [authority.pem, *(reversed(identity) if identity else ())]
    credentials = grpc.ssl_channel_credentials(*(path.read_bytes() for path in files))
    with grpc.secure_channel(server.address, credentials, options=CHANNEL_OPTIONS) as channel:
        yield channel


def https(server, path: str) -> str:
    return f"https://{server.http_addresses[0]}{path}"


def list_parts(server, authority, identity=None, metadata=None) -> str:
    with channel_to(server, authority, identity) as channel:
        return code_of(tally_pb2_grpc.TallyStub(channel).ListParts, tally_pb2.ListPartsRequest(), metadata=metadata)


def served_certificate(address: str, protocol: str) -> bytes:
    """The certificate that a port shows now."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols([protocol])
    host, port = address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=5) as plain:
        with context.wrap_socket(plain, server_hostname="localhost") as encrypted:
            assert encrypted.selected_alpn_protocol() == protocol
            return encrypted.getpeercert(binary_form=True)


def test_both_ports_speak_tls_and_nothing_else(start_tls, authority):
    server = start_tls()
    content = b"x\n" + b"7\n" * 5_000_000
    with channel_to(server, authority) as channel:
        stub = table_pb2_grpc.TableStub(channel)
        assert stub.Upload(table_pb2.UploadReq(csv_data=content), timeout=ANSWER_SECONDS_MAX).error == ""
        assert stub.ColumnSum(table_pb2.ColSumReq(column="x", format="csv"), timeout=ANSWER_SECONDS_MAX).total == 35_000_000
    answer = requests.get(https(server, "/api/v1/table/parts/1/csv"), verify=authority.pem, timeout=ANSWER_SECONDS_MAX)
    assert answer.content == content
    uploaded = requests.post(
        https(server, "/api/v1/table/parts"), data=CSV, verify=authority.pem, timeout=ANSWER_SECONDS_MAX
    )
    assert uploaded.status_code == 201
    # Without TLS, and without the authority, there is no answer.
    stub = table_pb2_grpc.TableStub(server.channel())
    assert code_of(stub.ColumnSum, table_pb2.ColSumReq(column="x", format="csv")) == "UNAVAILABLE"
    with pytest.raises(requests.RequestException):
        requests.get(server.http + "/livez", timeout=ANSWER_SECONDS_MAX)
    with pytest.raises(requests.exceptions.SSLError):
        requests.get(https(server, "/livez"), timeout=ANSWER_SECONDS_MAX)
    for version in (ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1):
        context = ssl.create_default_context(cafile=authority.pem)
        context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, version
        with pytest.raises(OSError), socket.create_connection(("127.0.0.1", server.port), timeout=5) as plain:
            context.wrap_socket(plain, server_hostname="localhost")


def test_the_commands_and_programs_use_tls(start_tls, authority, tokens, tmp_path):
    server = start_tls("--token-file", tokens.list)
    other = Authority(tmp_path, "other")
    (tmp_path / "day.csv").write_bytes(CSV)
    ca, token = ("--ca", authority.pem), ("--token-file", tokens.file("write"))
    for address in (server.address, f"https://{server.address}"):
        done = run_tally("upload", tmp_path / "day.csv", "--server", address, *ca, *token)
        assert done.returncode == 0, done.stderr
        assert run_tally("health", "--server", address, *ca).stdout == "serving\n"
        env = {"TALLY_CA": str(authority.pem), "TALLY_TOKEN_FILE": str(tokens.file("read")), "TALLY_SERVER": address}
        done = run_tally("sum", "x", env=env)
        assert done.returncode == 0 and int(done.stdout) % 4 == 0, done.stderr
        done = run_client("csvsum.py", "x", env=env)
        assert done.returncode == 0 and int(done.stdout.split()[-1]) % 4 == 0, done.stderr
        done = run_client("upload.py", tmp_path / "day.csv", *ca, *token, server=address)
        assert (done.returncode, done.stdout) == (0, "success\n"), done.stderr
    for arguments, text in (
        (("--server", server.address, "--ca", other.pem), "UnknownIssuer"),
        (("--server", f"https://{server.address}"), "no server at"),
        (("--server", f"http://{server.address}", *ca), "begins with http://"),
        (("--server", server.address, "--ca", tmp_path / "none"), "cannot be read"),
        (("--server", server.address), "no answer from"),
    ):
        done = run_tally("sum", "x", *arguments)
        assert done.returncode == 1 and text in done.stderr, (arguments, done.stderr)
    assert run_tally("sum", "x", "--client-cert", authority.pem).returncode == 2
    done = run_client("csvsum.py", "x", "--ca", other.pem, server=server)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1


def test_a_certificate_is_the_token_of_its_name(start_tls, authority, tokens, tmp_path):
    server = start_tls("--token-file", tokens.list, "--tls-client-ca", authority.pem)
    reader, nobody = authority.sign("reader", "DNS:read"), authority.sign("nobody", "DNS:nobody")
    unnamed = authority.sign("read", "IP:192.0.2.1")  # its common name does not count
    foreign = Authority(tmp_path, "foreign").sign("stranger", "DNS:admin")
    assert list_parts(server, authority) == "UNAUTHENTICATED"
    assert list_parts(server, authority, metadata=tokens.metadata("read")) == "OK"
    assert list_parts(server, authority, reader) == "OK"
    assert list_parts(server, authority, nobody) == "UNAUTHENTICATED"
    assert list_parts(server, authority, unnamed) == "UNAUTHENTICATED"
    assert list_parts(server, authority, foreign) == "UNAVAILABLE"
    # What the header says counts, so that a proxy can pass on the tokens of others.
    assert list_parts(server, authority, nobody, tokens.metadata("read")) == "OK"
    assert list_parts(server, authority, reader, [("authorization", "Bearer x")]) == "UNAUTHENTICATED"
    with channel_to(server, authority, reader) as channel:
        upload = table_pb2_grpc.TableStub(channel).Upload
        assert code_of(upload, table_pb2.UploadReq(csv_data=CSV)) == "PERMISSION_DENIED"
    for identity, status in ((None, 401), (reader, 200), (nobody, 401)):
        answer = requests.get(
            https(server, "/api/jobs"), verify=authority.pem, cert=identity, timeout=ANSWER_SECONDS_MAX
        )
        assert answer.status_code == status
    assert requests.get(https(server, "/readyz"), verify=authority.pem, timeout=ANSWER_SECONDS_MAX).ok
    # A browser shows its certificate also when it follows a link with a ticket of the tab's token.
    for identity in (None, reader, nobody):
        options = {"verify": authority.pem, "cert": identity, "timeout": ANSWER_SECONDS_MAX}
        asked = https(server, "/api/v1/tickets?target=/api/v1/table/parts")
        ticket = requests.post(asked, headers=tokens.header("read"), **options).json()["ticket"]
        link = https(server, f"/api/v1/table/parts?ticket={ticket}")
        assert requests.get(link, **options).status_code == 200
        assert requests.get(link, headers=tokens.header("read"), **options).status_code == 200, "it is no parameter"
        assert requests.get(link, **options).status_code == 401, "it was used"
    flags = ["--server", server.address, "--ca", authority.pem, "--client-cert", reader[0], "--client-key", reader[1]]
    assert run_tally("parts", *flags).returncode == 0
    done = run_client("csvsum.py", "x", "--client-cert", reader[0], "--client-key", reader[1], "--ca", authority.pem,
                      server=server)  # fmt: skip
    assert done.returncode == 0, done.stderr
    # Whoever is taken out of the list cannot call any more, though the certificate is as good as before.
    tokens.list.write_text("".join(line for line in tokens.list.read_text().splitlines(True) if "read " not in line))
    server.process.send_signal(signal.SIGHUP)
    wait_until(lambda: list_parts(server, authority, reader) == "UNAUTHENTICATED", "the reader is gone")


def test_a_key_that_everybody_may_read_is_told(start_server, authority, tmp_path):
    certificate, key = authority.sign("server", "DNS:localhost", "IP:127.0.0.1")
    key.chmod(0o604)
    certificate.chmod(0o604)
    server = start_server(tmp_path / "data", "--tls-cert", certificate, "--tls-key", key)
    server.log_line("WARN", str(key), "chmod o-rw")
    assert str(certificate) not in server.stderr


def test_only_valid_certificates_of_clients_count(start_tls, authority, tokens):
    server = start_tls("--token-file", tokens.list, "--tls-client-ca", authority.pem)

    def status(identity) -> int:
        """The status of a call with this certificate; 0 if there is no handshake."""
        try:
            return requests.get(
                https(server, "/api/jobs"), verify=authority.pem, cert=identity, timeout=ANSWER_SECONDS_MAX
            ).status_code
        except requests.exceptions.SSLError:
            return 0

    between = authority.sign("between", more="basicConstraints=CA:TRUE\nkeyUsage=keyCertSign\n")
    leaf = authority.sign("leaf", "DNS:read", by=between)
    forged = authority.sign("forged", "DNS:admin", by=leaf)

    def chain(name: str, identity, *others) -> tuple:
        path = authority.folder / f"{name}-chain.pem"
        path.write_bytes(b"".join(pair[0].read_bytes() for pair in (identity, *others)))
        return path, identity[1]

    for name, identity, expected in (
        ("good", authority.sign("good", "DNS:read"), 200),
        ("expired", authority.sign("expired", "DNS:read", days=-1), 0),
        ("for servers", authority.sign("purpose", "DNS:read", more="extendedKeyUsage=serverAuth\n"), 0),
        ("without its chain", leaf, 0),
        ("with its chain", chain("leaf", leaf, between), 200),
        ("signed by no authority", chain("forged", forged, leaf, between), 0),
        ("any name", authority.sign("any", "DNS:*"), 401),
        ("another case", authority.sign("case", "DNS:READ"), 401),
        ("the second name", authority.sign("second", "DNS:nobody,DNS:admin"), 401),
        ("after another kind", authority.sign("kind", "email:a@b.example,DNS:read"), 200),
    ):
        assert status(identity) == expected, name


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_sessions_are_not_resumed(start_tls, authority, version):
    """So certificates that are read again count at once, and nothing is kept for clients that are gone."""
    server = start_tls()
    context = ssl.create_default_context(cafile=authority.pem)
    context.minimum_version = context.maximum_version = version
    host, port = server.http_addresses[0].rsplit(":", 1)

    def connect(session):
        with socket.create_connection((host, int(port)), timeout=5) as plain:
            with context.wrap_socket(plain, server_hostname="localhost", session=session) as encrypted:
                encrypted.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                while encrypted.recv(4096):
                    pass
                return encrypted.session, encrypted.session_reused

    session, _ = connect(None)
    assert session is None or not session.has_ticket
    assert not connect(session)[1]


def test_a_protocol_of_another_port_is_no_handshake(start_tls, authority):
    server = start_tls()
    for address, own, other in (
        (server.address, "h2", "http/1.1"),
        (server.http_addresses[0], "http/1.1", "h2"),
    ):
        context = ssl.create_default_context(cafile=authority.pem)
        context.set_alpn_protocols([other])
        host, port = address.rsplit(":", 1)
        with pytest.raises(ssl.SSLError), socket.create_connection((host, int(port)), timeout=5) as plain:
            context.wrap_socket(plain, server_hostname="localhost")
        assert served_certificate(address, own)


def test_certificates_are_read_again_at_sighup(start_tls, authority):
    server = start_tls()
    ports = [(server.address, "h2"), (server.http_addresses[0], "http/1.1")]
    before = [served_certificate(*port) for port in ports]
    assert before[0] == before[1]
    files = {suffix: authority.folder / f"server.{suffix}" for suffix in ("pem", "key")}
    good = {suffix: path.read_bytes() for suffix, path in files.items()}
    with channel_to(server, authority) as channel:
        stub = tally_pb2_grpc.TallyStub(channel)
        more = []

        def chunks():
            yield tally_pb2.UploadChunk(data=b"x\n1\n")
            wait_until(lambda: more, "the certificates were read again", ANSWER_SECONDS_MAX)
            yield tally_pb2.UploadChunk(data=b"2\n")

        under_way = stub.Upload.future(chunks(), timeout=ANSWER_SECONDS_MAX)
        for suffix, content in (("pem", b"nothing"), ("key", b""), ("pem", None)):
            for other, path in files.items():
                path.write_bytes(good[other])
            files[suffix].write_bytes(content) if content is not None else files[suffix].unlink()
            lines = server.stderr.count("the certificates stay as they were")
            server.process.send_signal(signal.SIGHUP)
            wait_until(lambda: server.stderr.count("the certificates stay as they were") > lines, "an error")
            assert [served_certificate(*port) for port in ports] == before
        authority.sign("server", "DNS:localhost", "IP:127.0.0.1")
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: served_certificate(*ports[1]) != before[1], "a new certificate")
        after = [served_certificate(*port) for port in ports]
        assert after[0] == after[1] != before[0]
        assert b"-----" not in server.stderr.encode()
        more.append(True)
        assert under_way.result().rows == 2


@pytest.mark.parametrize(
    "certificate, key, text",
    [
        ("server.pem", "other.key", "--tls-cert and --tls-key"),
        ("server.key", "server.key", "--tls-cert"),
        ("server.pem", "server.pem", "--tls-key"),
        ("none", "server.key", "none"),
        ("long", "server.key", "bytes"),
    ],
)
def test_wrong_files_are_no_start(start_server, authority, tmp_path, certificate, key, text):
    authority.sign("server", "DNS:localhost")
    authority.sign("other", "DNS:localhost")
    (tmp_path / "long").write_bytes(b"x" * 100_000)
    with pytest.raises(ServerDidNotStart) as failure:
        start_server(tmp_path / "data", "--tls-cert", tmp_path / certificate, "--tls-key", tmp_path / key)
    assert failure.value.exit_code == 1 and text in failure.value.stderr
    assert "PRIVATE KEY" not in failure.value.stderr.replace("private key", "")


@pytest.mark.parametrize("port", ["grpc", "http"])
def test_slow_handshakes_lock_nobody_out(start_tls, authority, port):
    """More connections than there are make no handshake, or stop in the middle, or break it."""
    server = start_tls()
    address = server.address if port == "grpc" else server.http_addresses[0]
    host, number = address.rsplit(":", 1)
    hello = bytes.fromhex("1603010200010001fc0303") + bytes(20)
    with contextlib.ExitStack() as stack:
        slow = []
        for client in range(SLOW_CLIENTS):
            connection = stack.enter_context(socket.create_connection((host, int(number)), timeout=30))
            with contextlib.suppress(OSError):
                connection.sendall((b"", hello, b"GET / HTTP/1.1\r\n\r\n")[client % 3])
            slow.append(connection)
        for _ in range(10):
            started = time.monotonic()
            if port == "grpc":
                assert list_parts(server, authority) == "OK"
            else:
                answer = requests.get(https(server, "/api/jobs"), verify=authority.pem, timeout=ANSWER_SECONDS_MAX)
                assert answer.status_code == 200
            assert time.monotonic() - started < 5
        deadline = time.monotonic() + 2 * HANDSHAKE_SECONDS_MAX
        for connection in slow:
            connection.settimeout(max(0.1, deadline - time.monotonic()))
            with contextlib.suppress(ConnectionError):
                while connection.recv(1000):
                    pass
    assert list_parts(server, authority) == "OK"
