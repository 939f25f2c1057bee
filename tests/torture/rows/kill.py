"""Row 1: SIGKILL at random moments under clients that upload, repeat, remove, restore, sum and run tasks, while parts are packed."""

import random
import signal
import subprocess
import sys
import threading
import time

from conftest import Server, binary, clean_environment
from core import Row, Run, stop_process
from invariants import check, check_alive, check_idle, check_no_leftovers, check_verify
from model import Model
from test_idle_after_calls import tasks_count
from test_kill_during_uploads import KILL_ON_CHANGE

CLIENTS = 16
DELAY_SECONDS_MAX = 1.2
CHANGES_MAX = 600
KILL_SECONDS_MAX = 20


def start(run: Run) -> Server:
    """A server that packs in one of several ways, so that kills meet each."""
    choices = run.choices
    flags = ["--pack-above", choices.choice([0, 20, 200]), "--pack-bytes-per-s", choices.choice([200_000, 100_000_000])]
    flags += ["--undo-s", 86_400, "--durability", choices.choice(["fsync", "fsync", "none"]), "--log", "warn"]
    return Server(run.folder / "data", *flags)


def kill_later(server: Server, choices: random.Random) -> None:
    """After a time, or at a change of a file: the steps of a commit are microseconds apart."""
    if choices.random() < 0.5:
        time.sleep(choices.uniform(0.02, DELAY_SECONDS_MAX))  # the moment is the subject
        server.process.kill()
        return
    folders = [server.data / name for name in choices.choice([["parts"], ["parts", "tmp"], ["removed", "jobs"]])]
    count = choices.randint(1, CHANGES_MAX if len(folders) == 1 else CHANGES_MAX // 6)
    command = [sys.executable, "-S", KILL_ON_CHANGE, server.pid, count, *folders]
    with subprocess.Popen([str(word) for word in command], stdout=subprocess.DEVNULL) as killer:
        try:
            server.process.wait(KILL_SECONDS_MAX / 10)
        except subprocess.TimeoutExpired:
            pass
        finally:
            stop_process(killer)  # before the process id can be anybody else's
    server.process.kill()


def kill_during_start(run: Run) -> None:
    command = [binary(), "serve", "--data", run.folder / "data", "--grpc", "127.0.0.1:0", "--http", "none"]
    process = subprocess.Popen(
        [str(word) for word in command], env=clean_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    time.sleep(run.choices.uniform(0, 0.05))  # the moment is the subject
    process.kill()
    process.wait()
    run.figures["killed while starting"] += 1


def one_round(run: Run, model: Model, server: Server) -> Server:
    """Load, an end, a start, and a comparison. Returns the server that was started."""
    is_over = threading.Event()
    threads = model.start(server, run.choices, is_over)
    if run.choices.random() < 0.85:
        kill_later(server, run.choices)
        run.figures["SIGKILL"] += 1
    else:
        time.sleep(run.choices.uniform(0.02, DELAY_SECONDS_MAX))  # the moment is the subject
        server.process.send_signal(signal.SIGTERM)
        run.figures["SIGTERM"] += 1
    is_over.set()
    code = server.wait()
    for thread in threads:
        thread.join()
    model.check_no_failure()
    check(code in (0, -signal.SIGKILL), f"exit code {code}:\n{server.stderr[-4000:]}")
    check("panicked" not in server.stderr, server.stderr[-4000:])
    while run.choices.random() < 0.3:
        kill_during_start(run)
    if run.is_sabotaged:
        lose_one(run, model)
    server = start(run)
    run.figures["replayed"] += model.settle(server, run.choices)["replayed"]
    check_no_leftovers(server)
    check_alive(server)
    return server


def lose_one(run: Run, model: Model) -> None:
    """Takes away an acknowledged part as if it had never been committed."""
    parts = run.folder / "data" / "parts"
    for client in model.clients:
        for part in client.live:
            if (parts / f"{part}.json").exists():
                for path in parts.glob(f"{part}.*"):
                    path.unlink()
                return


def kill(run: Run) -> None:
    model = Model(CLIENTS, f"seed{run.seed}")
    server = start(run)
    tasks_before = tasks_count(server)
    try:
        for _round in run.rounds():
            server = one_round(run, model, server)
        server.close_channel()
        check_idle(server, tasks_before)
        server.stop()
        check_verify(run.folder / "data")
    finally:
        server.kill()
    parts = sum(len(client.live) for client in model.clients)
    segments = len(list((run.folder / "data" / "parts").glob("*.segment")))
    run.figures.update({"acknowledged": model.acknowledged(), "parts at the end": parts, "segments at the end": segments})


ROW = Row(1, "kill", "SIGKILL under 16 clients that upload, repeat, remove and run tasks, while parts are packed", "rounds", 25, 2_000, 45, kill, 10)
