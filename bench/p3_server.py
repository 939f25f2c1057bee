"""A table server in Python, a peer in the benchmarks. It has the same proto/table.proto, and therefore the same clients.

    python bench/p3_server.py --data DIR [--fsync]

It is a good solution of P3, the course project that asks for such a server: 8 threads, one global lock that is not held
while a file is read or written, every upload stored as CSV and as Parquet, and sums that read the files with pyarrow (of
Parquet files the one column). It prints `ready: ADDRESS` when it listens.
"""

import argparse
import io
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pyarrow
import pyarrow.compute
import pyarrow.csv
import pyarrow.parquet

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "clients"))

import table_pb2  # noqa: E402
import table_pb2_grpc  # noqa: E402

THREADS = 8


class Table(table_pb2_grpc.TableServicer):
    def __init__(self, folder: Path, fsync: bool):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.fsync = fsync
        self.lock = threading.Lock()  # guards `parts` and `next_part`
        self.parts = sorted(path.with_suffix("") for path in folder.glob("*.parquet"))
        self.next_part = len(self.parts)

    def Upload(self, request, context):
        try:
            rows = pyarrow.csv.read_csv(io.BytesIO(request.csv_data))
        except pyarrow.ArrowInvalid as error:
            return table_pb2.UploadResp(error=str(error))
        with self.lock:
            path = self.folder / f"{self.next_part:06}"
            self.next_part += 1
        path.with_suffix(".csv").write_bytes(request.csv_data)
        pyarrow.parquet.write_table(rows, path.with_suffix(".parquet"))
        if self.fsync:
            for written in (path.with_suffix(".csv"), path.with_suffix(".parquet"), self.folder):
                sync(written)
        with self.lock:
            self.parts.append(path)
        return table_pb2.UploadResp()

    def ColSum(self, request, context):
        read = {"csv": csv_column, "parquet": parquet_column}.get(request.format)
        if read is None:
            return table_pb2.ColSumResp(error=f"unknown format {request.format!r}")
        with self.lock:
            parts = list(self.parts)
        total = 0
        for path in parts:
            column = read(path.with_suffix(f".{request.format}"), request.column)
            if column is not None:
                total += pyarrow.compute.sum(column).as_py() or 0
        return table_pb2.ColSumResp(total=total)

    ColumnSum = ColSum


def csv_column(path: Path, name: str):
    options = pyarrow.csv.ConvertOptions(include_columns=[name], include_missing_columns=True)
    return pyarrow.csv.read_csv(path, convert_options=options)[name]


def parquet_column(path: Path, name: str):
    with pyarrow.parquet.ParquetFile(path) as file:
        return file.read(columns=[name])[name] if name in file.schema_arrow.names else None


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--fsync", action="store_true")
    options = parser.parse_args()
    unlimited = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    server = grpc.server(ThreadPoolExecutor(THREADS), options=[*unlimited, ("grpc.so_reuseport", 0)])
    table_pb2_grpc.add_TableServicer_to_server(Table(options.data, options.fsync), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(f"ready: 127.0.0.1:{port}", flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    main()
