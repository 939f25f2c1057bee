"""Draws how times grow with rows, parts, columns and clients, as PNG files in bench/plots/.

    make bench-plots                                # builds, then runs this: about ten minutes
    make bench-plots ARGS="--plot parts"            # only one plot
    make bench-plots ARGS=--draw                    # draws the last results again

Each point is the median of three runs. With --quick the sizes are small and the files go to target/bench/.
"""

import argparse
import functools
import json
import math
import os
import random
import statistics
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Callable, Dict, List, Tuple

import contenders
import data
import grpc
import matplotlib
import rows
from contenders import BENCH, P3Server, Peer, upload_load
from data import FULL, QUICK, Size, Table
from rows import COLUMN, P3, Run, crowded_folders
from server import ROOT, ServerFailed

matplotlib.use("Agg")
from matplotlib import pyplot, ticker  # noqa: E402

RUNS = 3
# A peer that would take longer than this for a point is left out from there on.
PEER_SECONDS_MAX = 10.0
# Colours: of Tally by what a curve shows, of the peers by their names.
OURS = dict.fromkeys(("", "CSV", "none"), "#0b5fa5") | dict.fromkeys(("start", "upload", "fsync"), "#1b7f4d")
OURS["Parquet"] = "#c2410c"
PEERS = {"pyarrow": "#7a9a01", "duckdb": "#b8860b", "polars": "#8e6bbf", "chdb": "#3a9d9d", P3: "#777777"}

# The name of a curve -> its points (x, y).
Curves = Dict[str, List[Tuple[float, float]]]


def median(once: Callable[[], float]) -> float:
    """The median of RUNS runs, after one that is not counted."""
    once()
    return statistics.median(once() for _ in range(RUNS))


def add(curves: Curves, name: str, x: float, y: float) -> None:
    curves.setdefault(name, []).append((x, y))


def goes_on(curves: Curves, name: str) -> bool:
    """Whether a peer was fast enough at its last point to try one that is ten times as large."""
    return name not in curves or curves[name][-1][1] * 10 < PEER_SECONDS_MAX


# --- measuring ----------------------------------------------------------------------------------------


def against_rows(size: Size) -> Curves:
    """Sums over parts of 250,000 rows; the two smallest tables are a single part."""
    curves: Curves = {}
    shapes = [(1, 10_000), (1, 100_000), (4, 250_000), (40, 250_000), (400, 250_000), (4_000, 250_000)]
    for parts_count, part_rows in shapes if size is FULL else shapes[:4]:
        rows_count = parts_count * part_rows
        with ExitStack() as stack:
            folder, total = data.many_parts(size.name, parts_count, part_rows)
            server = Run(size, stack).tally(folder)
            for kind, name in (("csv", "tally, CSV"), ("parquet", "tally, Parquet")):
                add(curves, name, rows_count, median(rows.ask(server.address, COLUMN, kind, total)))
            table = stored_table(folder, {COLUMN: total}, dict.fromkeys(data.bigdata.COLUMNS, "int64"))
            for engine in rows.ENGINES:
                if goes_on(curves, f"{engine}, CSV"):
                    with Peer(engine) as peer:
                        peer.prepare("csv_sum", total, table=table, column=COLUMN)
                        add(curves, f"{engine}, CSV", rows_count, median(peer.seconds))
                        files = [file.replace(".csv", ".parquet") for file in table["files"]]
                        peer.prepare("parquet_sum", total, files=files, column=COLUMN)
                        add(curves, f"{engine}, Parquet", rows_count, median(peer.seconds))
    return curves


def stored_table(folder: Path, sums: Dict[str, int], columns: Dict[str, str]) -> dict:
    """The parts of a data folder of Tally, as a table for the peers, which read the same files."""
    return {**Table(folder, columns, sums, False).for_peers(), "files": stored_csv(folder)}


def stored_csv(folder: Path) -> List[str]:
    return [str(file) for file in sorted((folder / "parts").glob("*.csv"))]


def against_parts(size: Size) -> Curves:
    """Sums over parts of 10 rows, and the start of a server with these parts."""
    curves: Curves = {}
    for parts_count in (1, 10, 100, 1_000, 10_000, 100_000) if size is FULL else (1, 10, 100):
        folder, total = data.many_parts(size.name, parts_count)
        add(curves, "tally, start", parts_count, median(functools.partial(start_seconds, size, folder)))
        with ExitStack() as stack:
            server = Run(size, stack).tally(folder, *rows.NO_PACKING)
            for kind, name in (("csv", "CSV"), ("parquet", "Parquet")):
                add(
                    curves,
                    f"tally, {name}",
                    parts_count,
                    median(rows.ask(server.address, COLUMN, kind, total)),
                )
            if parts_count >= data.BASE_PARTS and goes_on(curves, f"{P3}, Parquet"):
                p3 = stack.enter_context(P3Server(data.p3_many_parts(size.name, parts_count)))
                for kind, name in (("csv", "CSV"), ("parquet", "Parquet")):
                    add(
                        curves,
                        f"{P3}, {name}",
                        parts_count,
                        median(rows.ask(p3.address, COLUMN, kind, total)),
                    )
    return curves


def start_seconds(size: Size, folder: Path) -> float:
    with ExitStack() as stack:
        return Run(size, stack).tally(folder, *rows.NO_PACKING).start_seconds


COLUMNS_ROWS = 2_500


def against_columns(size: Size) -> Curves:
    """The upload of a part of 2,500 rows of integers, and sums of its middle column."""
    curves: Curves = {}
    for columns_count in (1, 4, 10, 40, 100, 400, 1_000, 4_000) if size is FULL else (1, 10, 100):
        folder = contenders.empty(BENCH / size.name / "columns")
        folder.mkdir()
        names, column = [f"c{index}" for index in range(columns_count)], f"c{columns_count // 2}"
        source, total = write_columns(folder / "wide.csv", names, column)
        uploads = [upload_seconds(size, source, folder / f"data-{turn}") for turn in range(RUNS)]
        add(curves, "tally, upload", columns_count, statistics.median(uploads))
        with ExitStack() as stack:
            server = Run(size, stack).tally(folder / "data-0")
            for kind, name in (("csv", "tally, CSV"), ("parquet", "tally, Parquet")):
                add(curves, name, columns_count, median(rows.ask(server.address, column, kind, total)))
            table = stored_table(folder / "data-0", {column: total}, dict.fromkeys(names, "int64"))
            for engine in ("pyarrow", "polars"):
                with Peer(engine) as peer:
                    peer.prepare("csv_sum", total, table=table, column=column)
                    add(curves, f"{engine}, CSV", columns_count, median(peer.seconds))
    return curves


def write_columns(path: Path, names: List[str], column: str) -> Tuple[Path, int]:
    numbers = random.Random("columns")
    index, total = names.index(column), 0
    with open(path, "w") as file:
        file.write(",".join(names) + "\n")
        for _ in range(COLUMNS_ROWS):
            row = numbers.choices(range(-50_000, 50_000), k=len(names))
            total += row[index]
            file.write(",".join(map(str, row)) + "\n")
    return path, total


def upload_seconds(size: Size, source: Path, folder: Path) -> float:
    with ExitStack() as stack:
        server = Run(size, stack).tally(folder, "--durability", "none")
        return upload_load(server.address, 1, [source])["seconds"]


def against_clients(size: Size) -> Curves:
    """The rate of uploads of 10 rows."""
    curves: Curves = {}
    files = list(data.small_files(BENCH / size.name / "small"))
    for clients in (1, 2, 4, 8, 16, 32, 64) if size is FULL else (1, 4):
        for durability, uploads in (("none", size.uploads // 2), ("fsync", size.synced_uploads // 2)):
            load = functools.partial(upload_rate, size, durability, clients, files, uploads)
            add(curves, f"tally, {durability}", clients, median(load))
        with ExitStack() as stack:
            p3 = stack.enter_context(P3Server(Run(size, stack).crowded_folder()))
            load = functools.partial(upload_load, p3.address, clients, files, size.uploads // 4)
            add(curves, f"{P3}, none", clients, median(lambda load=load: load()["per_second"]))
    return curves


def upload_rate(size: Size, durability: str, clients: int, files: List[Path], uploads: int) -> float:
    with ExitStack() as stack:
        run = Run(size, stack)
        server = run.tally(run.crowded_folder(), "--durability", durability)
        os.sync()  # so that earlier writes do not compete for the disk
        return upload_load(server.address, clients, files, uploads)["per_second"]


def against_survey_rows(size: Size) -> Curves:
    """Statistics over files of up to 300,000 rows; the peers read the Parquet files that Tally wrote."""
    curves: Curves = {}
    shapes = [(1, 10_000), (1, 100_000), (1, 300_000), (10, 300_000), (30, 300_000)]
    for files, file_rows in shapes if size is FULL else shapes[:2]:
        with ExitStack() as stack:
            folder = data.tally_folder(data.survey_table(size, files, file_rows))
            parquet = sorted(map(str, (folder / "parts").glob("*.parquet")))
            jobs = contenders.Jobs(Run(size, stack).tally(folder, "--durability", "none").http)
            for statistic, by in STATISTICS.items():
                ask = functools.partial(jobs.statistic, statistic, data.SURVEY_QUESTION, lambda answer: None)
                add(curves, f"tally, {statistic}", files * file_rows, median(ask))
                for engine in ("duckdb", "polars"):
                    with Peer(engine) as peer:
                        peer.prepare("survey_means", files=parquet, question=data.SURVEY_QUESTION, by=by)
                        add(curves, f"{engine}, {statistic}", files * file_rows, median(peer.seconds))
    return curves


STATISTICS = {
    "states_mean": ["LocationDesc"],
    "mean_by_category": ["LocationDesc", "StratificationCategory1", "Stratification1"],
}


USERS = [10, 1_000, 100_000, 1_000_000]


def against_groups(size: Size) -> Curves:
    """The group sums of files with as many rows, and few to many groups."""
    curves: Curves = {}
    rows_count = data.visits_count(size)
    for users_count in [*USERS, None] if size is FULL else [*USERS[:2], None]:
        # As many users as are expected: each comes with the same probability.
        users = users_count or data.most_users(size)
        groups = -users * math.expm1(-rows_count / users)
        with ExitStack() as stack:
            file = functools.partial(data.visits_file, users_count=users_count)
            grouped = rows.group_sum(file, data.VISITS_BY, data.VISITS_SUM, "512MB")(Run(size, stack))
            for name, seconds in grouped.items():
                add(curves, name, groups, median(seconds))
    return curves


# --- drawing ----------------------------------------------------------------------------------------------

# For each plot: what is measured, its title, the axes, and its panels by how the names of their curves end.
PLOTS = {
    "rows": (against_rows, "Sum of one column", "rows", "seconds", ("CSV", "Parquet")),
    "parts": (against_parts, "Many parts of 10 rows", "parts", "seconds", ("",)),
    "columns": (against_columns, f"One part of {COLUMNS_ROWS:,} rows", "columns", "seconds", ("",)),
    "groups": (against_groups, "Group sum of one CSV file, 20,000,000 rows", "groups", "seconds", ("",)),
    "survey": (against_survey_rows, "Statistics of a survey", "rows", "seconds", tuple(STATISTICS)),
    "clients": (against_clients, "Uploads of 10 rows", "clients at once", "uploads a second", ("",)),
}


def draw(name: str, curves: Curves, folder: Path) -> Path:
    _, title, x_label, y_label, panels = PLOTS[name]
    figure, all_axes = pyplot.subplots(
        1, len(panels), figsize=(1.5 + 5.5 * len(panels), 5), dpi=100, sharey=True, squeeze=False
    )
    for axes, panel in zip(all_axes[0], panels):
        shown = {curve: points for curve, points in curves.items() if curve.endswith(panel)}
        for curve, points in shown.items():
            draw_curve(axes, curve.removesuffix(f", {panel}") if panel else curve, points)
        if y_label == "seconds" and name != "groups":  # more groups are not more rows
            add_linear(axes, shown)
        axes.set(xscale="log", yscale="log", xlabel=x_label, title=f"{title}, {panel}" if panel else title)
        if name == "clients":
            ticks = sorted({x for points in curves.values() for x, _ in points})
            axes.set_xscale("log", base=2)
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            # The rates span one or two decades: powers of ten alone would give only two labels.
            axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_minor_formatter(ticker.NullFormatter())
        axes.yaxis.set_major_formatter("{x:,g}")
        axes.grid(True, which="major", color="#dddddd", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    all_axes[0][0].set_ylabel(y_label)
    axes.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.png"
    # Without the version of matplotlib, equal curves make equal files.
    figure.savefig(path, bbox_inches="tight", metadata={"Software": None})
    pyplot.close(figure)
    return path


def draw_curve(axes, label: str, points: List[Tuple[float, float]]) -> None:
    who, _, what = label.partition(", ")
    ours = who == "tally"
    axes.plot(
        *zip(*sorted(points)),
        label=label,
        color=OURS[what] if ours else PEERS[who],
        linestyle="--" if what == "Parquet" and not ours else "-",
        linewidth=2.4 if ours else 1.2,
        marker="o" if ours else ".",
        zorder=3 if ours else 2,
    )


def add_linear(axes, curves: Curves) -> None:
    """Draws a dotted line with the slope of linear growth, which ends at the last point of the first curve."""
    points = sorted(next(iter(curves.values())))
    (first, low), (last, high) = points[0], points[-1]
    if low < high and last / first >= 100:
        start = max(first, last * low / high / 3)
        axes.plot([start, last], [high * start / last, high], ":", color="#999999", label="linear", zorder=1)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures and draws how times grow.")
    parser.add_argument("--plot", action="append", choices=PLOTS, help="only this plot")
    parser.add_argument("--draw", action="store_true", help="do not measure, draw the last results")
    parser.add_argument("--quick", action="store_true", help="small sizes, to try out a change")
    options = parser.parse_args()
    size = QUICK if options.quick else FULL
    contenders.use_two_cores()
    for name in options.plot or PLOTS:
        kept = BENCH / size.name / "plots" / f"{name}.json"
        if not options.draw:
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(json.dumps(PLOTS[name][0](size)))
        path = draw(
            name, json.loads(kept.read_text()), ROOT / "bench" / "plots" if size is FULL else kept.parent
        )
        print(path.relative_to(ROOT))
    if not options.draw:
        contenders.empty(crowded_folders(size))  # at the end: see `Run.crowded_folder`


if __name__ == "__main__":
    contenders.end_children_on_sigterm()
    try:
        main()
    except (
        contenders.Wrong,
        ServerFailed,
        grpc.RpcError,
        subprocess.CalledProcessError,
    ) as failure:
        sys.exit(f"bench: {failure}")
