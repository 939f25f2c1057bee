"""A proxy that breaks or holds TCP connections, after a number of bytes or when a test says so."""

import random
import socket
import struct
import threading
import time


class CuttingProxy:
    """Passes bytes between clients and a server. With `bytes_max`, each connection is reset after up to that many bytes.

    `delay_s` holds back what the server sends, so that a test can break connections before an answer arrives.
    With `hold_after`, a connection on which a client sent more bytes stops there, until release() or discard().
    """

    def __init__(
        self, address: str, bytes_max: int = 0, delay_s: float = 0.0, seed: int = 1, hold_after: int = 0
    ):
        self.connect_to(address)
        self._hold_after = hold_after or 1 << 62
        self._passes_held = None  # not known yet: they wait
        self._held_changed = threading.Condition()
        self._bytes_max, self._delay_s = bytes_max, delay_s
        self._numbers = random.Random(seed)
        self._open = set()
        self._changes = threading.Lock()
        self._listener = socket.socket()
        if hold_after:  # small buffers, so that a client soon sees that its bytes are not taken
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(128)
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.connections_count = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> "CuttingProxy":
        return self

    def __exit__(self, *_exception) -> None:
        self._listener.close()
        self.discard()  # so that no thread waits
        self.cut_all()

    def cut_all(self) -> None:
        with self._changes:
            pairs, self._open = list(self._open), set()
        for pair in pairs:
            self._cut(pair)

    def connect_to(self, address: str) -> None:
        """The server of the connections that begin from now on."""
        host, _, port = address.rpartition(":")
        self._target = (host.strip("[]"), int(port))

    def hold(self) -> None:
        """Connections wait again where `hold_after` says."""
        self._decide(None)

    def release(self) -> None:
        """Held connections go on."""
        self._decide(True)

    def discard(self) -> None:
        """What clients send on held connections is read and passed to nobody, so that their end is seen."""
        self._decide(False)

    def _decide(self, passes_held) -> None:
        with self._held_changed:
            self._passes_held = passes_held
            self._held_changed.notify_all()

    def _may_pass(self) -> bool:
        with self._held_changed:
            self._held_changed.wait_for(lambda: self._passes_held is not None)
            return self._passes_held

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self._target)
            except OSError:
                client.close()
                continue
            with self._changes:
                self.connections_count += 1
                budget = [self._numbers.randrange(self._bytes_max)] if self._bytes_max else [1 << 62]
                pair = (client, server)
                self._open.add(pair)
            directions = ((client, server, 0.0, self._hold_after), (server, client, self._delay_s, 1 << 62))
            for source, target, delay_s, hold_after in directions:
                arguments = (pair, source, target, budget, delay_s, hold_after)
                threading.Thread(target=self._pass_on, args=arguments, daemon=True).start()

    def _pass_on(self, pair, source, target, budget, delay_s, hold_after) -> None:
        passed = 0
        try:
            target.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while data := source.recv(64 * 1024):
                passed += len(data)
                if passed > hold_after and not self._may_pass():
                    continue
                budget[0] -= len(data)
                if budget[0] < 0:
                    target.sendall(data[: budget[0]])  # all but the bytes that are too many
                    break
                if delay_s:
                    time.sleep(delay_s)
                target.sendall(data)
        except OSError:
            pass
        with self._changes:
            self._open.discard(pair)
        self._cut(pair)

    @staticmethod
    def _cut(pair) -> None:
        for end in pair:
            try:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close() sends a reset
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            end.close()
