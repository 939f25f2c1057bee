"""Uploads random rows, then checks that the sums of the table have grown by the sums of these rows.

The columns are x, y and z. x is always 1, so its sum is the number of rows. The same seed makes the same files,
whatever the number of clients. Rows are made while they are sent, so memory does not grow with --rows.
"""

import argparse
import multiprocessing
import multiprocessing.connection
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from typing import NamedTuple

import connection
import grpc
import tally_pb2
import tally_pb2_grpc
from sums import column_sum

COLUMNS = ("x", "y", "z")
FORMATS = ("csv", "parquet")
HEADER = b"x,y,z\n"
ROW = b"1,%d,%d\n"
# A row has 15 bytes on average. random.choices over a range is several times faster than one call for each number.
Y_VALUES = range(-50_000, 50_000)
Z_VALUES = range(1_000_000)
BLOCK_ROWS = 10_000  # formatted by one % and sent as one chunk of about 150 kB

LINE_INTERVAL_S = 5  # between progress lines if standard error is not a terminal


class Plan(NamedTuple):
    """What the command line asks for."""

    batches_count: int
    batch_rows: int
    seed: int
    clients_count: int


class Uploaded(NamedTuple):
    """A batch that the server has acknowledged."""

    batch_index: int
    csv_bytes: int
    sums: dict[str, int]


class Failed(NamedTuple):
    """A batch that could not be uploaded."""

    batch_index: int
    reason: str


class Batch:
    """One CSV file, made while it is read. Its bytes depend only on seed, index and number of rows."""

    def __init__(self, seed: int, index: int, rows: int):
        self.rows = rows
        self.csv_bytes = 0  # of the chunks so far, like the sums
        self.sums = dict.fromkeys(COLUMNS, 0)
        # The seed is a string, which is hashed, so batches with neighbouring indices are not related.
        self._random = random.Random(f"{seed}:{index}")

    def chunks(self) -> Iterator[tally_pb2.UploadChunk]:
        yield self._chunk(HEADER)
        for start in range(0, self.rows, BLOCK_ROWS):
            yield self._chunk(self._block(min(BLOCK_ROWS, self.rows - start)))

    def _block(self, rows: int) -> bytes:
        y = self._random.choices(Y_VALUES, k=rows)
        z = self._random.choices(Z_VALUES, k=rows)
        self.sums["x"] += rows
        self.sums["y"] += sum(y)
        self.sums["z"] += sum(z)
        cells = [0] * (2 * rows)
        cells[0::2], cells[1::2] = y, z
        return (ROW * rows) % tuple(cells)

    def _chunk(self, data: bytes) -> tally_pb2.UploadChunk:
        self.csv_bytes += len(data)
        return tally_pb2.UploadChunk(data=data)


def upload(stub: tally_pb2_grpc.TallyStub, plan: Plan, batch_index: int) -> Uploaded:
    """Uploads one batch and checks its receipt."""

    def attempt(metadata: connection.Metadata) -> tuple[Batch, tally_pb2.Receipt]:
        batch = Batch(plan.seed, batch_index, plan.batch_rows)  # a new one makes the same bytes again
        return batch, stub.Upload(batch.chunks(), metadata=metadata)

    batch, receipt = connection.upload_once(attempt, f"batch {batch_index}", was_reached=True)
    if (receipt.rows, receipt.csv.bytes) != (batch.rows, batch.csv_bytes):
        raise connection.Failure(
            f"sent {batch.rows} rows in {batch.csv_bytes} bytes,"
            f" the receipt says {receipt.rows} rows in {receipt.csv.bytes} bytes"
        )
    return Uploaded(batch_index, batch.csv_bytes, batch.sums)


def client(plan: Plan, client_index: int, results: multiprocessing.connection.Connection) -> None:
    """The main function of a client process: uploads every clients_count-th batch and reports each, until one fails."""
    with connection.open_channel() as channel:
        stub = tally_pb2_grpc.TallyStub(channel)
        for batch_index in range(client_index, plan.batches_count, plan.clients_count):
            try:
                result = upload(stub, plan, batch_index)
            except connection.Failure as failure:
                result = Failed(batch_index, str(failure))
            except grpc.RpcError as error:
                result = Failed(batch_index, connection.explain(error))
            try:
                results.send(result)
            except OSError:
                return  # the program that started us is gone
            if isinstance(result, Failed):
                return


def start_clients(plan: Plan) -> dict[multiprocessing.connection.Connection, multiprocessing.Process]:
    """Starts the client processes. The keys are the pipes from which their results are read."""
    # Spawned, because gRPC's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    clients = {}
    # A process that is still starting Python would print a traceback on Ctrl-C. It inherits that the signal is
    # ignored, until it imports connection.
    on_interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
    for client_index in range(plan.clients_count):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=client, args=(plan, client_index, sender), daemon=True)
        process.start()
        sender.close()  # the process has its own copy; while this one is open, there is no EOFError when the process ends
        clients[receiver] = process
    signal.signal(signal.SIGINT, on_interrupt)
    return clients


def upload_all(plan: Plan) -> dict[str, int]:
    """Uploads all batches and returns the sums of their columns."""
    sums = dict.fromkeys(COLUMNS, 0)
    progress = Progress(plan)
    clients = start_clients(plan)
    try:
        while clients:
            for receiver in multiprocessing.connection.wait(list(clients)):
                try:
                    result = receiver.recv()
                except EOFError:
                    process = clients.pop(receiver)
                    process.join()
                    if process.exitcode == 0:
                        continue
                    reason = f"a client process ended with exit code {process.exitcode}"
                    raise connection.Failure(reason) from None
                if isinstance(result, Failed):
                    raise connection.Failure(f"batch {result.batch_index}: {result.reason}")
                for column in COLUMNS:
                    sums[column] += result.sums[column]
                if not sys.stdout.isatty():
                    print("uploaded", flush=True)  # as the original client, for programs that read its output
                progress.add(result)
    finally:
        progress.close()
        for process in clients.values():  # empty unless something failed
            process.terminate()
    return sums


class Progress:
    """Progress on standard error: on a terminal one line that is rewritten, otherwise a new line every 5 s."""

    def __init__(self, plan: Plan):
        self._plan = plan
        self._start = time.monotonic()
        self._batches_count = 0
        self._csv_bytes = 0
        self._terminal = sys.stderr.isatty()
        self._line_shown = True  # nothing to show yet
        self._next_line_at = self._start + LINE_INTERVAL_S

    def add(self, uploaded: Uploaded) -> None:
        self._batches_count += 1
        self._csv_bytes += uploaded.csv_bytes
        self._line_shown = False
        if self._terminal:
            # Cut to the width: a line that wraps cannot be rewritten.
            width = shutil.get_terminal_size().columns
            sys.stderr.write("\r" + self._line()[: width - 1].ljust(width - 1))
            sys.stderr.flush()
        elif time.monotonic() >= self._next_line_at:
            self._print_line()
            self._next_line_at = time.monotonic() + LINE_INTERVAL_S

    def close(self) -> None:
        """Shows the latest progress, and leaves the cursor at the start of a line."""
        if self._line_shown:
            return
        if self._terminal:
            sys.stderr.write("\n")
        else:
            self._print_line()

    def _print_line(self) -> None:
        print(self._line(), file=sys.stderr, flush=True)
        self._line_shown = True

    def _line(self) -> str:
        elapsed_s = time.monotonic() - self._start
        rows = self._batches_count * self._plan.batch_rows
        left_s = elapsed_s / self._batches_count * (self._plan.batches_count - self._batches_count)
        return (
            f"{self._batches_count}/{self._plan.batches_count} batches, {rows:,} rows,"
            f" {self._csv_bytes / 1e6:,.0f} MB, {rows / elapsed_s:,.0f} rows/s, {left_s:.0f} s left"
        )


def ask_sums() -> dict[tuple[str, str], tuple[int, float]]:
    """Asks for the sum of each column in each format. Returns the sum and the time in milliseconds."""
    answers = {}
    with connection.open_channel() as channel:
        for column in COLUMNS:
            for format in FORMATS:
                start = time.monotonic()
                total = column_sum(channel, column, format)
                answers[column, format] = total, (time.monotonic() - start) * 1000
    return answers


def sums_before() -> dict[str, int]:
    """The sums of the table before anything is uploaded."""
    try:
        answers = ask_sums()
    except connection.Failure as failure:
        reason = f"nothing sent: what the table holds already does not sum: {failure}"
        raise connection.Failure(reason) from None
    for column in COLUMNS:
        by_csv, by_parquet = (answers[column, format][0] for format in FORMATS)
        if by_csv != by_parquet:
            raise connection.Failure(
                f"nothing sent: what the table holds already sums to {by_csv} by csv"
                f' and to {by_parquet} by parquet in column "{column}"'
            )
    return {column: answers[column, FORMATS[0]][0] for column in COLUMNS}


def check(expected: dict[str, int]) -> None:
    """Asks for all sums, prints them beside the expected ones, and fails if one differs."""
    try:
        answers = ask_sums()
    except connection.Failure as failure:
        raise connection.Failure(f"all batches are sent, but the table does not sum: {failure}") from None
    rows = [("column", "csv sum", "parquet sum", "expected", "csv ms", "parquet ms")]
    wrong = []
    for column in COLUMNS:
        totals = [answers[column, format][0] for format in FORMATS]
        times = [f"{answers[column, format][1]:.0f}" for format in FORMATS]
        rows.append((column, *map(str, totals), str(expected[column]), *times))
        if totals != [expected[column]] * len(FORMATS):
            wrong.append(column)
    print_table(rows)
    if wrong:
        raise connection.Failure(
            f"not what was sent, or somebody else uploaded meanwhile: column {', '.join(wrong)}"
        )


def print_table(rows: list[tuple[str, ...]]) -> None:
    widths = [max(map(len, cells)) for cells in zip(*rows)]
    for first, *others in rows:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:]))]
        print("  ".join(cells))


def cpus_count() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def positive(argument: str) -> int:
    number = int(argument)
    if number < 1:
        raise ValueError
    return number


def parse_arguments() -> Plan:
    parser = argparse.ArgumentParser(
        description="Uploads random rows, then checks that the sums of the table have grown by their sums.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--batches", type=positive, default=400, help="number of files to upload")
    parser.add_argument("--rows", type=positive, default=250_000, help="rows of each file, 15 bytes a row")
    parser.add_argument("--seed", type=int, default=1, help="the same seed makes the same files")
    clients = min(2, cpus_count())
    parser.add_argument("--clients", type=positive, default=clients, help="number of processes that upload in parallel")
    connection.add_credentials(parser)
    options = parser.parse_args()
    return Plan(options.batches, options.rows, options.seed, min(options.clients, options.batches))


def main() -> None:
    plan = parse_arguments()
    before = sums_before()
    print(
        f"{plan.batches_count:,} batches of {plan.batch_rows:,} rows, seed {plan.seed},"
        f" clients: {plan.clients_count}, server: {connection.server_address()}",
        file=sys.stderr,
    )
    sent = upload_all(plan)
    check({column: before[column] + sent[column] for column in COLUMNS})


if __name__ == "__main__":
    connection.run(main)
