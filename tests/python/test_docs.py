"""README.md and docs/*.md, checked: every command is run and prints what is shown, every link leads somewhere, and
docs/operating.md knows every flag and every metric.

Commands are in blocks that begin with ```console. A line with "$ " is a command (a backslash at its end continues it),
and the lines below it are its output; without such lines the output is not compared, but the command must succeed. The
blocks of a page are one session in a copy of the checkout's small folders. What differs from run to run is not compared:
ids, addresses, times, checksums. In a block that begins with ```console numbers-vary, numbers are not compared either. A
line "..." stands for any lines. Where the page shows a line with "error: ", the command must fail.
"""

import itertools
import os
import queue
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import requests
import table_pb2
from conftest import ROOT, Server, binary, clean_environment, step_aside, table, wait_until
from test_access import Tokens
from test_docker import BUILD_SECONDS_MAX, HEALTHY_SECONDS_MAX, LABEL, docker, engine_answers

README = ROOT / "README.md"
OPERATING = ROOT / "docs" / "operating.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]

COMMAND_SECONDS_MAX = 120
POLL_SECONDS_MAX = 30


# --- blocks -------------------------------------------------------------------------------------------------


@dataclass
class Command:
    """A command of a page, and the output that is shown below it."""

    line: int
    text: str
    output: list = field(default_factory=list)


@dataclass
class Block:
    commands: list
    numbers_vary: bool

    def uses(self, program: str) -> bool:
        return any(command.text.split()[0] == program for command in self.commands)


def fences(text: str) -> list:
    """(line, info, lines) of every fenced block; lines count from 1."""
    found, opened = [], None
    for number, line in enumerate(text.splitlines(), start=1):
        if opened is None and line.startswith("```"):
            opened = (number, line.removeprefix("```").strip(), [])
        elif opened is not None and line == "```":
            found.append(opened)
            opened = None
        elif opened is not None:
            opened[2].append((number, line))
    assert opened is None, f"the block of line {opened[0]} does not end"
    return found


def blocks(text: str) -> list:
    """The blocks of commands of a page."""
    found = []
    for line, info, lines in fences(text):
        kind, _, option = info.partition(" ")
        assert kind in ("console", "text", "json", "csv"), f"line {line}: nothing is known of {info!r} blocks"
        assert option in ("", "numbers-vary"), f"line {line}: {option!r} means nothing"
        if kind != "console":
            continue
        block = Block([], bool(option))
        for number, text_line in lines:
            if block.commands and block.commands[-1].text.endswith("\\"):
                block.commands[-1].text = block.commands[-1].text[:-1] + text_line
            elif text_line.startswith("$ "):
                block.commands.append(Command(number, text_line.removeprefix("$ ")))
            else:
                assert block.commands, f"line {number}: output before the first command"
                block.commands[-1].output.append(text_line)
        found.append(block)
    return found


# --- comparing ----------------------------------------------------------------------------------------------

UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
ADDRESS = r"(?:localhost|127\.0\.0\.1|\[::1\]):\d+"
# In this order. The folder that a server says it serves is a path, which may begin with "./" or not.
VARYING = [
    (UUID, "<id>"),
    (rf"{ADDRESS}(?:, {ADDRESS})*", "<address>"),
    (r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d(?::\d\d(?:\.\d+)?)?Z?", "<time>"),
    (r'"[0-9a-f]{16}"', '"<checksum>"'),
    (r"\d[\d.,]* (?:ms|s)\b", "<duration>"),
    (r" in \./", " in "),
    (r"\s+$", ""),
]
NUMBERS = [(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?", "<number>"), (r" +", " "), (r"#+", "#"), (r"^ ", "")]


def shape(line: str, numbers_vary: bool) -> str:
    """A line without what differs from run to run."""
    for pattern, name in VARYING + (NUMBERS if numbers_vary else []):
        line = re.sub(pattern, name, line)
    return line


def agree(shown: list, printed: list, numbers_vary: bool = False) -> bool:
    """Whether a page shows what was printed."""
    if not shown:
        return not printed
    if shown[0] == "...":
        return any(agree(shown[1:], printed[skipped:], numbers_vary) for skipped in range(len(printed) + 1))
    is_same = printed and shape(shown[0], numbers_vary) == shape(printed[0], numbers_vary)
    return bool(is_same) and agree(shown[1:], printed[1:], numbers_vary)


# --- sessions -----------------------------------------------------------------------------------------------


class Session:
    """A shell in a copy of the checkout, in which the commands of a page are run one after the other."""

    def __init__(self, folder: Path, has_tally: bool):
        self.folder = folder
        self.server = None
        self.ids = {}  # as shown -> as they are
        for name in ("inputs", "clients", "proto"):
            shutil.copytree(ROOT / name, folder / name)
        (folder / "target" / "release").mkdir(parents=True)
        (folder / "target" / "release" / "tally").symlink_to(binary())
        programs = folder.parent / "programs"
        programs.mkdir()
        (programs / "python3").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
        (programs / "python3").chmod(0o755)
        if has_tally:
            (programs / "tally").symlink_to(binary())
        path = f"{programs}{os.pathsep}{os.environ['PATH']}"
        self.shell = subprocess.Popen(
            ["bash"],
            cwd=folder,
            env=clean_environment(PATH=path, LC_ALL="C.UTF-8"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
        )
        self.lines = queue.Queue()
        threading.Thread(target=lambda: [self.lines.put(line) for line in self.shell.stdout], daemon=True).start()

    def run(self, command: str, folder: Path = None) -> tuple:
        """Exit code and lines of a command, in a folder other than the session's if one is given."""
        mark = uuid.uuid4().hex
        text = f"eval {shlex.quote(command)} </dev/null"
        if folder is not None:
            text = f"(cd {shlex.quote(str(folder))} && {text})"
        print(f"{text}; printf '\\n{mark} %d\\n' $?", file=self.shell.stdin, flush=True)
        printed, deadline = [], time.monotonic() + (BUILD_SECONDS_MAX if folder else COMMAND_SECONDS_MAX)
        while True:
            try:
                line = self.lines.get(timeout=max(0.0, deadline - time.monotonic())).rstrip("\n")
            except queue.Empty:
                raise AssertionError(f"{command!r} did not end; it printed {printed}") from None
            if line.startswith(mark):
                if printed and printed[-1] == "":  # the one that printf begins with
                    printed.pop()
                return int(line.split()[1]), printed
            printed.append(line)

    def serve(self, command: str) -> list:
        """Starts the server of `tally serve FLAGS &` on free ports, and returns its ready line."""
        flags = shlex.split(command.removesuffix("&"))[2:]
        data = "./tally-data"
        if "--data" in flags:
            at = flags.index("--data")
            data = flags.pop(at + 1)
            flags.pop(at)
        assert self.server is None, "a server is running already"
        self.server = Server(data, *flags)
        self.run(f"export TALLY_SERVER={self.server.address}")
        return [self.server.ready_line]

    def stop_server(self) -> None:
        self.server.stop()
        self.server = None

    def close(self) -> None:
        if self.server is not None:
            print(f"--- log of the server\n{self.server.stderr}")
            self.server.kill()
        self.shell.kill()
        self.shell.wait()

    def execute(self, command: Command) -> tuple:
        """Runs a command as the page means it."""
        text = command.text
        if re.fullmatch(r"(?:\S*/)?tally serve\b.*&", text):
            return 0, self.serve(text)
        if text == "kill %1":
            self.stop_server()
            return 0, []
        if self.server is not None:
            text = text.replace("localhost:5440", self.server.address)
            text = text.replace("localhost:5000", self.server.http.removeprefix("http://"))
        for shown, found in self.ids.items():
            text = text.replace(shown, found)
        return self.run(text)

    def check(self, command: Command, numbers_vary: bool) -> None:
        """Runs a command until it prints what is shown: at once, or soon where a job is asked for."""
        deadline = time.monotonic() + (POLL_SECONDS_MAX if re.search("get_results|/status", command.text) else 0)
        fails = any(line.startswith("error: ") for line in command.output)
        while True:
            code, printed = self.execute(command)
            is_right = (code != 0) == fails and (not command.output or agree(command.output, printed, numbers_vary))
            if is_right or time.monotonic() > deadline:
                break
            time.sleep(0.05)
        shown, found = "\n".join(command.output), "\n".join(printed)
        assert is_right, f"line {command.line}: {command.text}\n--- shown\n{shown}\n--- exit code {code}\n{found}"
        self.ids.update(zip(re.findall(UUID, shown), re.findall(UUID, found)))


@pytest.fixture
def session(request, tmp_path, monkeypatch):
    """A session for the page that the test is about."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    monkeypatch.chdir(folder)
    # README.md says how to build the program and where it is then.
    opened = Session(folder, has_tally=request.getfixturevalue("page") != README)
    yield opened
    opened.close()


def is_built_elsewhere(text: str) -> bool:
    """Whether a command builds what the session has already; it must then name something that there is."""
    words = text.split()
    if words[0] == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
        assert set(words[1:]) <= set(targets), f"the Makefile has no target for {text!r}"
        return True
    return text == "cargo build --release"


def with_commands(pages: list, uses_docker: bool) -> list:
    has = [page for page in pages if any(block.uses("docker") == uses_docker for block in blocks(page.read_text()))]
    return [pytest.param(page, id=page.stem) for page in has]


@pytest.mark.parametrize("page", with_commands(PAGES, uses_docker=False))
def test_commands_print_what_is_shown(page: Path, session: Session):
    for block in blocks(page.read_text()):
        if not block.uses("docker"):
            for command in block.commands:
                if not is_built_elsewhere(command.text):
                    session.check(command, block.numbers_vary)


# --- docker -------------------------------------------------------------------------------------------------


class DockerNames:
    """Names of this run for the images, containers, volumes and ports of a page."""

    def __init__(self):
        run = os.environ.get("TALLY_TEST_RUN") or uuid.uuid4().hex[:12]
        self.label = f"{LABEL}=tally-test-{run}"  # by which CI removes what a run that was cut short leaves
        self.prefix = f"tally-docs-{uuid.uuid4().hex[:8]}"
        self.images, self.containers, self.volumes, self.ports = {}, {}, {}, {}

    def translate(self, text: str) -> str:
        """A docker command with these names in place of those of the page."""
        words = shlex.split(text.replace("$PWD", str(ROOT)))
        action = words[1]
        if action == "build":
            at = words.index("-t") + 1
            words[at] = self.images.setdefault(words[at], f"{self.prefix}-{words[at]}")
            words[2:2] = ["--label", self.label]
        elif action == "run":
            words[-1] = self.images[words[-1]]
            name = next((word.removeprefix("--name=") for word in words if word.startswith("--name=")), "unnamed")
            self.containers[name] = f"{self.prefix}-{name}"
            words = [word for word in words if not word.startswith("--name=")]
            for at, flag in enumerate(words):
                if flag == "-p":
                    words[at + 1] = f"127.0.0.1::{words[at + 1].rsplit(':', 1)[1]}"
                elif flag == "-v" and not words[at + 1].startswith("/"):
                    volume, _, target = words[at + 1].partition(":")
                    self.volumes[volume] = f"{self.prefix}-{volume}"
                    words[at + 1] = f"{self.volumes[volume]}:{target}"
            words[2:2] = ["--label", self.label, f"--name={self.containers[name]}"]
        else:
            words = [self.containers.get(word, word) for word in words]
        return shlex.join(words)

    def wait_until_healthy(self) -> None:
        for name in self.containers.values():
            health = ["inspect", "--format", "{{.State.Health.Status}}", name]
            wait_until(lambda: docker(*health) == "healthy", f"{name} becomes healthy", HEALTHY_SECONDS_MAX)

    def remove(self) -> None:
        for removal, names in [
            (["rm", "--force", "--volumes"], self.containers),
            (["volume", "rm", "--force"], self.volumes),
            (["rmi", "--force", "--no-prune"], self.images),
        ]:
            if names:
                subprocess.run(["docker", *removal, *names.values()], capture_output=True)


@pytest.mark.parametrize("page", with_commands(PAGES, uses_docker=True))
def test_docker_commands_print_what_is_shown(page: Path, session: Session):
    if not engine_answers():
        step_aside("no docker engine answers")
    names = DockerNames()
    try:
        for block in blocks(page.read_text()):
            if block.uses("docker"):
                for command in block.commands:
                    check_docker(session, names, command, block.numbers_vary)
    finally:
        names.remove()


def check_docker(session: Session, names: DockerNames, command: Command, numbers_vary: bool) -> None:
    words = shlex.split(command.text)
    if words[0] != "docker":
        for shown, port in names.ports.items():
            command.text = re.sub(rf"\b{shown}\b", port, command.text)
        return session.check(command, numbers_vary)
    code, printed = session.run(names.translate(command.text), folder=ROOT)
    # Docker hands on standard output and standard error side by side, so two lines may change places.
    orders = itertools.permutations(printed) if len(printed) == 2 else [printed]
    agrees = not command.output or any(agree(command.output, list(order), numbers_vary) for order in orders)
    said = "\n".join(printed[-40:])
    assert code == 0 and agrees, f"line {command.line}: {command.text}\n--- exit code {code}\n{said}"
    if words[1] == "run":
        names.wait_until_healthy()
        newest = list(names.containers.values())[-1]
        for flag, value in itertools.pairwise(words):
            if flag == "-p":
                shown, inside = value.split(":")[-2:]
                names.ports[shown] = docker("port", newest, f"{inside}/tcp").splitlines()[0].rsplit(":", 1)[1]


# --- links --------------------------------------------------------------------------------------------------

LINK = re.compile(r"\[((?:`[^`]*`|[^\]`])*)\]\(([^)\s]+)\)")


def markdown_files() -> list:
    found = []
    for folder, folders, files in os.walk(ROOT):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "target")))
        found += [Path(folder) / name for name in sorted(files) if name.endswith(".md")]
    return found


def without_blocks(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)


def anchors(text: str) -> set:
    """The anchors of a page's headings, as GitHub makes them."""
    found = set()
    for heading in re.findall(r"^#+ (.*)$", without_blocks(text), re.M):
        heading = LINK.sub(r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        numbered = (f"{slug}-{number}" for number in itertools.count(1))
        found.add(slug if slug not in found else next(name for name in numbered if name not in found))
    return found


def lines_with(phrase: str, root: Path) -> list:
    """Where a phrase is in the Rust files of a folder: what a link to it should be."""
    files = sorted([*root.glob("src/**/*.rs"), *root.glob("tests/*.rs"), *root.glob("*.rs")])
    lines = ((file, number, line) for file in files for number, line in enumerate(file.read_text().splitlines(), 1))
    return [f"{file.relative_to(root)}#L{number}" for file, number, line in lines if phrase in line]


def wrong_links(page: Path, root: Path = ROOT) -> list:
    """What is wrong with the links of a page: files, headings and lines that are not there, or lines without the
    phrase.
    """
    wrong = []
    for shown, link in LINK.findall(without_blocks(page.read_text())):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if re.fullmatch(r"L\d+", anchor):
            lines = target.read_text().splitlines() if target.exists() else []
            line = lines[int(anchor[1:]) - 1] if int(anchor[1:]) <= len(lines) else ""
            phrase = re.fullmatch(r"`(.+)`", shown)
            phrase = phrase[1].replace("\\|", "|") if phrase else shown
            if phrase not in line:
                wrong.append(f"{link}: {phrase!r} is not there, but at {lines_with(phrase, root)}")
        elif not target.exists():
            wrong.append(f"{link}: there is no such file")
        elif anchor and anchor not in anchors(target.read_text()):
            wrong.append(f"{link}: there is no such heading")
    return wrong


@pytest.mark.parametrize("page", [pytest.param(page, id=str(page.relative_to(ROOT))) for page in markdown_files()])
def test_links_lead_to_what_they_name(page: Path):
    assert wrong_links(page) == []


def wrong_tests(page: Path) -> list:
    """Tests that a page names, as `test` in [file](path), and that are not in that file."""
    named = re.findall(r"`(\w+)` in \[[^\]]*\]\(([^)#]+)\)", page.read_text())
    files = {path: page.parent / path for _, path in named}
    texts = {path: file.read_text() if file.exists() else "" for path, file in files.items()}
    return [f"{path} has no test {name}" for name, path in named if not re.search(rf"\b(?:fn|def) {name}\b", texts[path])]


def test_the_tests_that_are_named_are_there():
    page = ROOT / "docs" / "guarantees.md"
    assert wrong_tests(page) == []
    assert page.read_text().count("#L") >= 5, "the course project's questions lead to code"


# --- flags and metrics --------------------------------------------------------------------------------------


def help_of(*command: str) -> str:
    return subprocess.run([binary(), *command, "--help"], capture_output=True, check=True, encoding="utf-8").stdout


def flags() -> set:
    """All flags of all commands."""
    commands = re.findall(r"^  ([a-z-]+)", help_of().partition("Commands:")[2].partition("Options:")[0], re.M)
    texts = [help_of(), *(help_of(command) for command in commands if command != "help")]
    return {flag for text in texts for flag in re.findall(r"^ +(?:-\w, )?(--[a-z][a-z-]*)", text, re.M)}


def undocumented(names: set, text: str) -> list:
    """Those of the names that stand nowhere in the text as `name`."""
    return sorted(name for name in names if f"`{name}`" not in text)


def invented(names: set, prefix: str, text: str) -> list:
    """What the first column of a table lists with this prefix, and is none of the names."""
    listed = re.findall(rf"^\| `({re.escape(prefix)}[a-z_-]+)`", text, re.M)
    return sorted(set(listed) - names)


def test_every_flag_is_documented():
    text = OPERATING.read_text()
    assert len(flags()) > 30
    assert undocumented(flags(), text) == []
    assert invented(flags(), "--", text) == []


def plain(default: str) -> str:
    """A default as --help has it: `1 MiB` is 1048576, `86,400` is 86400, `off` is nothing."""
    units = {"": 1, " KiB": 2**10, " MiB": 2**20, " GiB": 2**30}
    number = re.fullmatch(r"(\d[\d,]*)( .iB|)", default)
    if number:
        return str(int(number[1].replace(",", "")) * units[number[2]])
    return default.replace("`", "").replace(", ", " ").removeprefix("off").strip()


def wrong_defaults(help_text: str, text: str) -> list:
    """The flags of `tally serve` whose default the table gives as another, as (flag, in the table, in --help)."""
    sections = re.split(r"^ +(?:-\w, )?(--[a-z-]+)", help_text, flags=re.M)[1:]
    found = {flag: re.search(r"\[default: (.*)\]", section) for flag, section in zip(sections[::2], sections[1::2])}
    table = re.findall(r"^\| `(--[a-z-]+)`.*? \| (.*?) ?\| ", text, re.M)
    pairs = [(flag, plain(default), found[flag][1] if found.get(flag) else "") for flag, default in table]
    return [pair for pair in pairs if pair[1] != pair[2]]


def test_every_default_is_documented():
    text = OPERATING.read_text()
    assert len(re.findall(r"^\| `--", text, re.M)) > 25
    assert wrong_defaults(help_of("serve"), text) == []


def metrics(server: Server, headers: dict) -> set:
    text = requests.get(f"{server.http}/metrics", headers=headers, timeout=COMMAND_SECONDS_MAX).text
    kinds = re.findall(r"^# TYPE (\S+) (\S+)$", text, re.M)
    return {f"{name}_total" if kind == "counter" else name for name, kind in kinds}


def test_every_metric_is_documented(start_server, tmp_path):
    tokens = Tokens(tmp_path)
    server = start_server(tmp_path / "data", "--token-file", tokens.list)
    # Counters with labels are there once something was counted.
    table(server).ColumnSum(table_pb2.ColSumReq(column="x", format="csv"), metadata=tokens.metadata("read"))
    requests.get(f"{server.http}/livez", timeout=COMMAND_SECONDS_MAX)
    text = OPERATING.read_text()
    names = metrics(server, tokens.header("read"))
    assert len(names) > 10
    assert undocumented(names, text) == []
    assert invented(names, "tally_", text) == []


# --- the checks themselves ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shown", "printed", "numbers_vary", "agrees"),
    [
        ("10", "10", False, True),
        ("10", "11", False, False),
        ("10", "11", True, True),
        ("10\n2 ms", "10\n31 ms", False, True),
        ("10\n2 ms", "10", False, False),
        ("10", "10\n2 ms", False, False),
        ("server localhost:5440", "server 127.0.0.1:41234", False, True),
        ("grpc 127.0.0.1:5440, [::1]:5440; http", "grpc 127.0.0.1:41234; http", False, True),
        ('{"status":"done"}', '{"status":"running"}', False, False),
        ("a\n...\nb", "a\n1\n2\nb", False, True),
        ("a\n...\nb", "a\nb", False, True),
        ("a\n...\nb", "a\n1", False, False),
        ("p50   0.2 ms", "p50  12.25 ms", True, True),
        ("p50   0.2 ms", "p99  12.25 ms", True, False),
    ],
)
def test_outputs_agree_or_differ(shown, printed, numbers_vary, agrees):
    assert agree(shown.splitlines(), printed.splitlines(), numbers_vary) == agrees


@pytest.mark.parametrize(
    ("link", "says"),
    [
        ("[x](other.md)", ""),
        ("[x](other.md#a-heading-of-its-own)", ""),
        ("[x](#here)", ""),
        ("[`let x`](code.rs#L2)", ""),
        ("[code](https://example.com/#L1)", ""),
        ("[x](missing.md)", "no such file"),
        ("[x](other.md#missing)", "no such heading"),
        ("[x](#missing)", "no such heading"),
        ("[`let x`](code.rs#L1)", "at ['code.rs#L2']"),
        ("[`let x`](code.rs#L9)", "at ['code.rs#L2']"),
        ("[`let x`](gone.rs#L2)", "at ['code.rs#L2']"),
    ],
)
def test_a_wrong_link_is_found(tmp_path, link, says):
    (tmp_path / "other.md").write_text("# A `heading` of its own\n")
    (tmp_path / "code.rs").write_text("fn main() {\n    let x = 1;\n")
    (tmp_path / "page.md").write_text(f"# Here\n\n{link}\n\n```text\n[x](nowhere.md)\n```\n")
    wrong = wrong_links(tmp_path / "page.md", tmp_path)
    assert (says in wrong[0] and len(wrong) == 1) if says else wrong == []


def test_a_missing_test_flag_default_or_metric_is_found(tmp_path):
    (tmp_path / "code.rs").write_text("async fn one_test() {}\n")
    (tmp_path / "page.md").write_text("`one_test` in [code](code.rs), `one` in [code](code.rs), `one` in [code](gone.rs)\n")
    assert wrong_tests(tmp_path / "page.md") == ["code.rs has no test one", "gone.rs has no test one"]
    assert undocumented({"--data", "--load"}, "| `--data` |") == ["--load"]
    help_text = "  --data <DIR>\n   [default: ./x]\n  --n <N>\n   [default: 1024]\n  --log\n"
    assert wrong_defaults(help_text, "| `--data` | `./x` | |\n| `--n` | 1 KiB | |\n| `--log` | | |\n") == []
    wrong = wrong_defaults(help_text, "| `--data` | `./y` | |\n| `--n` | 2 KiB | |\n| `--log` | 1 | |\n")
    assert [flag for flag, _, _ in wrong] == ["--data", "--n", "--log"]
    assert invented({"--data"}, "--", "| `--data` |\n| `--dat` |\n| `tally_x` |\n") == ["--dat"]


@pytest.mark.parametrize(
    "text",
    ["```\n$ ls\n```", "```bash\n$ ls\n```", "```console\noutput\n```", "```console x\n```", "```console\n"],
)
def test_a_block_that_would_not_be_run_is_found(text):
    with pytest.raises(AssertionError):
        blocks(text)


@pytest.mark.parametrize("page", [None])
@pytest.mark.parametrize(
    ("text", "output", "is_right"),
    [
        ("echo 10", ["10"], True),
        ("echo 10", ["11"], False),
        ("echo 10; false", ["10"], False),
        ("echo error: no; false", ["error: no"], True),
        ("echo error: no", ["error: no"], False),
        ("no-such-program", [], False),
        ("tally sum x --format pdf", [], False),
    ],
)
def test_a_command_that_does_something_else_is_found(page, session, text, output, is_right):
    if is_right:
        session.check(Command(1, text, output), False)
    else:
        with pytest.raises(AssertionError, match="line 1: "):
            session.check(Command(1, text, output), False)


def test_a_target_that_the_makefile_lacks_is_found():
    assert is_built_elsewhere("make demo") and not is_built_elsewhere("tally sum x")
    with pytest.raises(AssertionError, match="no target"):
        is_built_elsewhere("make nothing")
