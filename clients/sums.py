"""Column sums, for the three client programs that ask for them."""

import argparse
import json
import sys
import time
from collections.abc import Iterable
from typing import Optional

import connection
import grpc
import table_pb2
import table_pb2_grpc

NAMES_MAX = 5  # that a hint shows
HINT_SECONDS_MAX = 2  # that the names of the columns may take
NAME_CHARS_MAX = 64  # of a name that are compared and shown


def column_sum(channel: grpc.Channel, column: str, format: str) -> int:
    """The sum of a column, read from the "csv" or the "parquet" files."""
    reply = table_pb2_grpc.TableStub(channel).ColSum(table_pb2.ColSumReq(column=column, format=format))
    if reply.error:
        raise connection.Failure(reply.error)
    return reply.total


def print_column_sum(format: str) -> None:
    """The main program of csvsum.py and parquetsum.py: prints the time that the sum took, and then the sum.

    Both are on standard output, the sum on the last line, as the original clients print them.
    """
    parser = argparse.ArgumentParser(description=f"Prints the sum of a column, from the {format} files.")
    parser.add_argument("column", metavar="COLUMN", type=utf8, help="the column's name in the header")
    connection.add_credentials(parser)
    column = parser.parse_args().column
    with connection.open_channel() as channel:
        start = time.monotonic()
        total = column_sum(channel, column, format)
        elapsed_ms = (time.monotonic() - start) * 1000
        print(f"{elapsed_ms:.1f} ms")
        print(total, flush=True)
        missing = missing_column_hint(channel, column) if total == 0 else None
    if missing:
        print(missing, file=sys.stderr)


def missing_column_hint(channel: grpc.Channel, column: str) -> Optional[str]:
    """Names the columns that there are if no part has the column; None if one has it, or if the server cannot tell."""
    try:
        import tally_pb2  # not needed for a sum
        import tally_pb2_grpc

        columns = tally_pb2_grpc.TallyStub(channel).ListColumns(
            tally_pb2.ListColumnsRequest(), timeout=HINT_SECONDS_MAX
        )
        return hint(column, (table_column.name for table_column in columns))
    except (ImportError, AttributeError, grpc.RpcError):
        return None  # older stubs, an older server, or no time


def hint(column: str, names: Iterable[str]) -> Optional[str]:
    """`no part has a column "n"; the table has " n ", id`, the nearest names first; None if the column is among them."""
    nearest: list[tuple[int, int, str]] = []  # distance, position, name
    count = 0
    for count, name in enumerate(names, 1):
        if name == column:
            return None
        nearest.append((edit_distance(compared(column), compared(name)), count, name))
        nearest = sorted(nearest)[:NAMES_MAX]
    start = f"no part has a column {quoted(column)}; the table has "
    if not nearest:
        return start + "no columns"
    more = f" and {count - len(nearest)} more" if count > len(nearest) else ""
    return start + ", ".join(shown(name) for _, _, name in nearest) + more


def compared(name: str) -> str:
    """What is compared of a name: neither white space around it nor case count."""
    return name.strip()[:NAME_CHARS_MAX].casefold()


def shown(name: str) -> str:
    """A name in a list: in quotes if its ends could not be recognised otherwise."""
    plain = name and name == name.strip() and name.isprintable() and not set(name) & set(',";')
    return name if plain and len(name) <= NAME_CHARS_MAX else quoted(name)


def quoted(name: str) -> str:
    cut = name[:NAME_CHARS_MAX] + ("…" if len(name) > NAME_CHARS_MAX else "")
    # What is not printable could act on a terminal.
    escaped = "".join(c if c.isprintable() else json.dumps(c)[1:-1] if c != "\x7f" else "\\u007f" for c in cut)
    return f'"{escaped}"'


def edit_distance(one: str, other: str) -> int:
    """How many characters must be added, removed or replaced (Levenshtein)."""
    row = list(range(len(other) + 1))
    for index, c in enumerate(one, 1):
        diagonal, row[0] = row[0], index
        for position, d in enumerate(other, 1):
            diagonal, row[position] = row[position], min(row[position] + 1, row[position - 1] + 1, diagonal + (c != d))
    return row[-1]


def utf8(argument: str) -> str:
    """An argument that is valid UTF-8, so that protobuf can send it."""
    try:
        argument.encode("utf-8")
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError("is not UTF-8") from None
    return argument
