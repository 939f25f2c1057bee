//! The command line as its users have it: the real program, against a real server process on a port of its own, and
//! against servers that are not there, refuse or break off.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may fail where it stands")]

use std::{
    ffi::OsStr,
    fs::{self, File, OpenOptions},
    io::{self, BufRead, BufReader, Write},
    net::{Ipv4Addr, SocketAddr},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    thread,
    time::Duration,
};

use clap::CommandFactory;
use futures_util::stream::{self, BoxStream, StreamExt};
use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat};
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};
use tally::{
    api::grpc::pb::{
        FactRequest, FactResponse, SetNumRequest, SetNumResponse,
        num_store_server::{NumStore, NumStoreServer},
        tally::{
            DamagedFile, ForgetRequest, ForgetResponse, GroupBlock, GroupSumRequest, ListPartsRequest,
            ListQuarantineRequest, ListQuarantineResponse, Receipt, UploadChunk, VerifyProgress, VerifyRequest,
            tally_server::{Tally, TallyServer},
        },
    },
    cli::Cli,
};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, Streaming};
use tonic_health::ServingStatus;

/// What acts on a terminal, newlines apart, which no text of ours may hold.
const CONTROLS: [char; 4] = ['\u{1b}', '\u{7}', '\u{9b}', '\u{202e}'];

/// The program, without the settings of whoever runs the tests.
fn tally<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tally"));
    command.args(arguments).stdin(Stdio::null());
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("TALLY_") {
            command.env_remove(name);
        }
    }
    command
}

/// What a command said, and its exit code.
#[derive(Debug)]
struct Said {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Said {
    #[track_caller]
    fn succeeded(self) -> String {
        assert_eq!((self.code, self.err.as_str()), (Some(0), ""), "{self:?}");
        self.out
    }

    /// The lines of standard error of a command that failed.
    #[track_caller]
    fn failed(&self) -> Vec<&str> {
        assert_eq!(self.code, Some(1), "{self:?}");
        let lines: Vec<&str> = self.err.lines().collect();
        assert!(lines.iter().all(|line| line.starts_with("error: ")), "{self:?}");
        lines
    }

    fn json_lines(&self) -> Vec<Value> {
        self.out.lines().map(|line| serde_json::from_str(line).expect("a JSON value on each line")).collect()
    }
}

fn run(command: &mut Command) -> Said {
    let output = command.output().unwrap();
    Said {
        code: output.status.code(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

fn run_with_stdin(command: &mut Command, input: &[u8]) -> Said {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    Said {
        code: output.status.code(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

/// A server process on a fresh folder, ended with the test.
struct Server {
    process: Child,
    address: String,
    folder: TempDir,
    _stdout: BufReader<ChildStdout>,
}

impl Server {
    fn start() -> Self {
        let folder = TempDir::new().unwrap();
        let log = folder.path().join("server.log");
        let mut process = tally(["serve", "--grpc", "127.0.0.1:0", "--http", "none", "--data"])
            .arg(folder.path().join("data"))
            .stdout(Stdio::piped())
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(process.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let address = line.strip_prefix("ready: grpc ").and_then(|rest| rest.split([',', ';']).next());
        let Some(address) = address.map(str::to_owned) else {
            let _ = process.kill();
            panic!("the server said {line:?}, and in its log: {}", fs::read_to_string(&log).unwrap());
        };
        Self { process, address, folder, _stdout: stdout }
    }

    /// A client of this server.
    fn tally<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut command = tally(arguments);
        command.env("TALLY_SERVER", &self.address).current_dir(self.folder.path());
        command
    }

    /// A file beside the data, which clients of this server name as `name`.
    fn file(&self, name: &str, bytes: impl AsRef<[u8]>) {
        fs::write(self.folder.path().join(name), bytes).unwrap();
    }

    fn upload(&self, csv: &str) {
        run_with_stdin(&mut self.tally(["upload", "-"]), csv.as_bytes()).succeeded();
    }

    fn sum(&self, column: &str) -> String {
        let by_parquet = run(&mut self.tally(["sum", "--", column])).succeeded();
        let by_csv = run(&mut self.tally(["sum", "--format", "csv", "--", column])).succeeded();
        assert_eq!(by_csv, by_parquet);
        by_csv
    }

    fn parts(&self) -> Vec<Value> {
        run(&mut self.tally(["parts", "--json"])).json_lines()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A client that may wait for ever.
struct KilledAtEnd(Child);

impl Drop for KilledAtEnd {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// An address where nothing listens, and nothing else can while the socket lives.
fn nobody() -> (Socket, String) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    (socket, address.to_string())
}

fn sample(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("inputs").join(name)
}

#[test]
fn uploads_are_listed_and_summed() {
    let server = Server::start();
    server.file("a.csv", "x,y,z\n1,2,3\n4,5,6\n");
    server.file("b.csv", "x,y\n5,10\n0,20\n");
    assert_eq!(run(&mut server.tally(["upload", "a.csv"])).succeeded(), "part 1: a.csv, 2 rows, 18 bytes\n");
    assert_eq!(run(&mut server.tally(["upload", "b.csv"])).succeeded(), "part 2: b.csv, 2 rows, 14 bytes\n");

    // P3's example.
    assert_eq!(server.sum("x"), "10\n");
    assert_eq!(server.sum("z"), "9\n");
    assert_eq!(server.sum("w"), "0\n");

    let table = run(&mut server.tally(["parts"])).succeeded();
    let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines.len(), 3, "{table}");
    assert_eq!(lines[0].join(" "), "part rows csv bytes parquet bytes uploaded at columns");
    assert_eq!((&lines[1][..3], &lines[1][5..]), (&["1", "2", "18"][..], &["3:", "x,", "y,", "z"][..]));
    assert_eq!((&lines[2][..3], &lines[2][5..]), (&["2", "2", "14"][..], &["2:", "x,", "y"][..]));

    let columns = run(&mut server.tally(["parts", "--columns", "--after", "1"])).succeeded();
    let lines: Vec<&str> = columns.lines().map(str::trim).collect();
    assert!(lines[0].starts_with("part 2: 2 rows, 14 bytes of csv, "), "{columns}");
    let cells: Vec<Vec<&str>> = lines[1..].iter().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(cells, [["type", "nulls", "column"], ["int64", "0", "x"], ["int64", "0", "y"]]);

    assert_eq!(run(&mut server.tally(["health"])).succeeded(), "serving\n");
}

#[test]
fn an_empty_table_has_a_header_only() {
    let server = Server::start();
    assert_eq!(run(&mut server.tally(["parts"])).succeeded().lines().count(), 1);
    assert_eq!(run(&mut server.tally(["parts", "--json"])).succeeded(), "");
    assert_eq!(run(&mut server.tally(["parts", "--columns"])).succeeded(), "");
    assert_eq!(server.sum("x"), "0\n");
}

#[test]
fn json_has_the_names_of_the_receipt() {
    let server = Server::start();
    server.file("a.csv", "x,name\n1,a\n,b\n");
    let uploaded = run(&mut server.tally(["upload", "--json", "a.csv"])).json_lines();
    let receipt = fs::read(server.folder.path().join("data/parts/1.json")).unwrap();
    let receipt: Value = serde_json::from_slice(&receipt).unwrap();

    let [uploaded] = &uploaded[..] else { panic!("{uploaded:?}") };
    assert_eq!(uploaded["file"], "a.csv");
    for field in ["part", "rows", "columns", "csv", "parquet", "uploaded_at"] {
        assert!(!receipt[field].is_null(), "{field} is in {receipt}");
        assert_eq!(uploaded[field], receipt[field], "{field}");
        assert_eq!(server.parts()[0][field], receipt[field], "{field}");
    }
    assert_eq!(uploaded["columns"][0], json!({"name": "x", "type": "int64", "nulls": 1}));
    assert_eq!(uploaded["csv"]["bytes"], 14);

    let sum = run(&mut server.tally(["sum", "x", "--format", "csv", "--json"])).json_lines();
    assert_eq!(sum, [json!({"column": "x", "format": "csv", "total": 1})]);
    assert_eq!(run(&mut server.tally(["health", "--json"])).json_lines(), [json!({"status": "serving"})]);
}

#[test]
fn the_samples_show_quoting_and_every_type() {
    let server = Server::start();
    run(server.tally(["upload", "--parallel", "1"]).args([sample("simple.csv"), sample("second.csv")])).succeeded();
    run(server.tally(["upload", "--parallel", "1"]).args([sample("quoted.csv"), sample("types.csv")])).succeeded();
    for (column, total) in [("x", "10\n"), ("z", "9\n"), ("w", "0\n"), ("qty", "1357\n"), ("code", "149\n")] {
        assert_eq!(server.sum(column), total, "{column}");
    }
    let parts = server.parts();
    assert_eq!(parts[2]["rows"], 5);
    assert_eq!(parts[2]["columns"][2], json!({"name": "price, each", "type": "int64", "nulls": 1}));
    let types: Vec<&Value> = parts[3]["columns"].as_array().unwrap().iter().map(|column| &column["type"]).collect();
    let expected = ["int64", "float64", "boolean", "date32", "timestamp", "timestamp_utc", "utf8", "utf8"];
    assert_eq!(types, expected);

    let price = run(&mut server.tally(["sum", "price"]));
    let [line] = price.failed()[..] else { panic!("{price:?}") };
    assert!(line.contains("part 4") && line.contains("price") && line.contains("Float64"), "{line}");
    assert_eq!(price.out, "");
}

#[test]
fn standard_input_is_a_file() {
    let server = Server::start();
    // More than a few blocks of it, so that a block that is lost or doubled shows.
    let rows = 300_000;
    let csv = "qty\n".to_owned() + &"1234567\n".repeat(rows);
    let said = run_with_stdin(&mut server.tally(["upload", "-"]), csv.as_bytes());
    assert_eq!(said.succeeded(), format!("part 1: -, {rows} rows, {} bytes\n", csv.len()));
    assert_eq!(server.sum("qty"), format!("{}\n", 1_234_567 * rows));
    assert_eq!(fs::read(server.folder.path().join("data/parts/1.csv")).unwrap(), csv.as_bytes());
}

#[test]
fn many_files_go_side_by_side() {
    let server = Server::start();
    let names: Vec<String> = (1..=20).map(|number| format!("{number}.csv")).collect();
    for (number, name) in (1..).zip(&names) {
        server.file(name, format!("x\n{number}\n"));
    }
    for parallel in ["1", "3", "64"] {
        let said = run(server.tally(["upload", "--json", "--parallel", parallel]).args(&names));
        let mut files: Vec<Value> = said.json_lines().iter().map(|line| line["file"].clone()).collect();
        assert_eq!((said.code, files.len()), (Some(0), 20), "{said:?}");
        files.sort_by_key(|file| names.iter().position(|name| file == name.as_str()));
        assert_eq!(files, names);
    }
    assert_eq!(server.sum("x"), "630\n");
}

/// A pipe can be opened for writing, without waiting, if somebody has it open for reading.
#[cfg(target_os = "linux")]
#[test]
fn a_file_is_opened_when_one_before_it_was_read() {
    let server = Server::start();
    let names = ["one", "two", "three", "four"];
    let path = |name: &str| server.folder.path().join(name);
    for name in names {
        mknodat(CWD, path(name), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    }
    let open_now = |name: &str| {
        OpenOptions::new().write(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed()).open(path(name))
    };
    let open = |name: &str| {
        for _ in 0..1000 {
            match open_now(name) {
                Ok(pipe) => return pipe,
                Err(_nobody_reads) => thread::sleep(Duration::from_millis(10)),
            }
        }
        panic!("{name} was not opened");
    };
    let command = &mut server.tally(["upload", "--parallel", "2"]);
    let mut client = KilledAtEnd(command.args(names).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    let (mut one, mut two) = (open("one"), open("two"));
    one.write_all(b"x\n1\n").unwrap();
    thread::sleep(Duration::from_millis(100));
    assert!(open_now("three").is_err(), "as many as go at once are still read");
    drop(one);
    let mut three = open("three");
    thread::sleep(Duration::from_millis(100));
    assert!(open_now("four").is_err(), "as many as go at once are still read");
    two.write_all(b"x\n2\n").unwrap();
    drop(two);
    let mut four = open("four");
    three.write_all(b"x\n3\n").unwrap();
    four.write_all(b"x\n4\n").unwrap();
    drop((three, four));
    assert!(client.0.wait().unwrap().success());
    assert_eq!(server.sum("x"), "10\n");
}

#[test]
fn a_bad_file_does_not_stop_the_others() {
    let server = Server::start();
    server.file("good.csv", "x\n1\n");
    server.file("bad.csv", "x\n1\n1,2\n");
    server.file("better.csv", "x\n2\n");
    fs::create_dir(server.folder.path().join("folder")).unwrap();
    let files = ["good.csv", "bad.csv", "missing.csv", "folder", "better.csv"];
    for parallel in ["1", "4"] {
        let said = run(server.tally(["upload", "--parallel", parallel]).args(files));
        let mut lines = said.failed();
        lines.sort_unstable();
        let [bad, folder, missing] = lines[..] else { panic!("{said:?}") };
        assert_eq!(bad, "error: bad.csv: row 2 has 2 cells, the header has 1");
        assert!(folder.starts_with("error: folder: cannot read: "), "{folder}");
        assert!(missing.starts_with("error: missing.csv: cannot read: "), "{missing}");
        assert_eq!(said.out.lines().count(), 2, "{said:?}");
        assert!(said.out.contains(": good.csv, 1 row, 4 bytes\n"), "{said:?}");
        assert!(said.out.contains(": better.csv, 1 row, 4 bytes\n"), "{said:?}");
    }
    assert_eq!(server.sum("x"), "6\n");
    assert_eq!(server.parts().len(), 4);

    let said = run(&mut server.tally(["upload", "--json", "bad.csv"]));
    assert_eq!(said.failed().len(), 1);
    assert_eq!(said.json_lines(), [json!({"file": "bad.csv", "error": "row 2 has 2 cells, the header has 1"})]);
}

#[cfg(target_os = "linux")]
#[test]
fn a_file_that_cannot_be_read_becomes_no_part() {
    let server = Server::start();
    server.file("good.csv", "x\n1\n");
    // It opens, and reading it fails.
    let said = run(&mut server.tally(["upload", "/proc/self/mem", "good.csv"]));
    let [line] = said.failed()[..] else { panic!("{said:?}") };
    assert!(line.starts_with("error: /proc/self/mem: cannot read: "), "{line}");
    assert_eq!(server.parts().len(), 1);
}

#[test]
fn wrong_usage_exits_with_2() {
    let wrong: [&[&str]; 24] = [
        &[],
        &["unknown"],
        &["upload"],
        &["upload", "-", "-"],
        &["upload", "--parallel", "0", "a.csv"],
        &["upload", "--parallel", "65", "a.csv"],
        &["upload", "--parallel", "many", "a.csv"],
        &["upload", "--unknown", "a.csv"],
        &["sum"],
        &["sum", "x", "y"],
        &["sum", "x", "--format", "tsv"],
        &["sum", "x", "--server", "https://localhost:5440"],
        &["sum", "x", "--server", "localhost:port"],
        &["parts", "extra"],
        &["parts", "--after", "-1"],
        &["parts", "--limit", "some"],
        &["health", "--server", ""],
        &["load-numstore", "extra"],
        &["load-numstore", "--clients", "0"],
        &["load-numstore", "--clients", "101"],
        &["load-numstore", "--requests", "0"],
        &["load-numstore", "--rate", "0"],
        &["load-numstore", "--keys", "0"],
        &["load-numstore", "--keys", "50001"],
    ];
    for arguments in wrong {
        let said = run(&mut tally(arguments));
        assert_eq!((said.code, said.out.as_str()), (Some(2), ""), "{arguments:?}: {said:?}");
        assert!(!said.err.is_empty(), "{arguments:?}");
    }
    let said = run(tally(["parts"]).env("TALLY_LIMIT", "some"));
    assert_eq!(said.code, Some(2), "{said:?}");
}

#[test]
fn a_server_that_is_not_there_is_one_line() {
    let (_socket, address) = nobody();
    let file = sample("simple.csv");
    let file = file.to_str().unwrap();
    let commands: [&[&str]; 8] = [
        &["upload", file, file],
        &["upload", "-"],
        &["sum", "x"],
        &["parts"],
        &["parts", "--json"],
        &["forget", "1"],
        &["verify"],
        &["health"],
    ];
    for arguments in commands {
        for server in [address.clone(), format!("http://{address}")] {
            let said = run(tally(arguments).args(["--server", &server]));
            let expected = format!("error: no server at {address}: connection refused");
            assert_eq!(said.failed(), [expected], "{arguments:?}");
            assert_eq!(said.out, "", "{arguments:?}");
        }
    }
}

#[test]
fn a_server_that_dies_ends_an_upload_whose_input_goes_on() {
    let mut server = Server::start();
    let mut client = server
        .tally(["upload", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // More than pipe and read-ahead hold, so the call is under way when this is written; and the input does not end.
    let mut input = client.stdin.take().unwrap();
    input.write_all("x\n".repeat(2 << 20).as_bytes()).unwrap();
    server.process.kill().unwrap();
    let output = client.wait_with_output().unwrap();
    drop(input);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), output.stdout), (Some(1), vec![]), "{said}");
    assert!(said.starts_with(&format!("error: -: no answer from {}: ", server.address)), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
}

#[test]
fn text_of_users_cannot_act_on_the_terminal() {
    let server = Server::start();
    let hostile = "\u{1b}]0;owned\u{7}\u{1b}[2J\u{9b}31m\u{202e}x";
    server.upload(&format!("{hostile},b\n1,{hostile}\n"));
    server.file(&format!("{hostile}.csv"), format!("{hostile}\n1\n"));
    server.file(&format!("bad {hostile}.csv"), format!("{hostile}\n1,2\n"));

    let (file, bad) = (format!("{hostile}.csv"), format!("bad {hostile}.csv"));
    let commands: [&[&str]; 10] = [
        &["parts"],
        &["parts", "--columns"],
        &["parts", "--json"],
        &["upload", &file],
        &["upload", "--json", &file],
        &["upload", &bad],
        &["upload", "--json", &bad],
        &["upload", &format!("missing {hostile}")],
        &["sum", hostile, "--json"],
        &["sum", "b"],
    ];
    for arguments in commands {
        let said = run(&mut server.tally(arguments));
        let text = format!("{}{}", said.out, said.err);
        assert!(text.to_lowercase().contains("1b"), "{arguments:?} shows the escape as text: {said:?}");
        assert!(!text.contains(|c: char| CONTROLS.contains(&c) || (c.is_control() && c != '\n')), "{said:?}");
    }
    // JSON means the same as before.
    assert_eq!(server.parts()[0]["columns"][0]["name"], hostile);
    let sum = run(&mut server.tally(["sum", hostile, "--json"])).json_lines();
    assert_eq!(sum, [json!({"column": hostile, "format": "parquet", "total": 3})]);
}

#[test]
fn a_reader_that_has_gone_is_no_failure() {
    let server = Server::start();
    server.file("a.csv", "x\n1\n");
    server.file("b.csv", "x\n2\n");
    let commands: [&[&str]; 7] = [
        &["upload", "a.csv", "b.csv"],
        &["upload", "--json", "a.csv"],
        &["parts"],
        &["parts", "--json"],
        &["parts", "--columns"],
        &["sum", "x"],
        &["health"],
    ];
    for arguments in commands {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let said = run(server.tally(arguments).stdout(writer));
        assert_eq!((said.code, said.err.as_str()), (Some(0), ""), "{arguments:?}");
    }
    assert_eq!(server.sum("x"), "4\n", "the files went their way all the same");
}

#[test]
fn flags_can_come_from_the_environment() {
    let server = Server::start();
    for csv in ["x\n1\n", "x\n2\n", "x\n3\n"] {
        server.upload(csv);
    }
    let sum = run(server.tally(["sum", "x"]).env("TALLY_JSON", "1").env("TALLY_FORMAT", "csv")).json_lines();
    assert_eq!(sum, [json!({"column": "x", "format": "csv", "total": 6})]);
    let parts = run(server.tally(["parts"]).env("TALLY_JSON", "true").env("TALLY_AFTER", "1").env("TALLY_LIMIT", "1"));
    let ids: Vec<Value> = parts.json_lines().iter().map(|part| part["part"].clone()).collect();
    assert_eq!(ids, [2]);
    let columns = run(server.tally(["parts"]).env("TALLY_COLUMNS", "yes").env("TALLY_JSON", "0")).succeeded();
    assert!(columns.starts_with("part 1: 1 row, 4 bytes of csv, "), "{columns}");
    // A flag is stronger.
    let sum = run(server.tally(["sum", "x", "--format", "parquet", "--json"]).env("TALLY_FORMAT", "csv")).json_lines();
    assert_eq!(sum[0]["format"], "parquet");
}

#[test]
fn every_flag_has_its_environment_variable_and_the_help_names_it() {
    let program = Cli::command();
    for command in program.get_subcommands() {
        let help = run(&mut tally([command.get_name(), "--help"])).succeeded();
        let mut flags = 0;
        for flag in command.get_arguments().filter_map(|argument| argument.get_long()) {
            if flag == "help" {
                continue;
            }
            flags += 1;
            let variable = format!("[env: TALLY_{}", flag.to_uppercase().replace('-', "_"));
            let named =
                help.match_indices(&variable).any(|(at, _)| help[at + variable.len()..].starts_with([']', '=']));
            assert!(named, "tally {} --{flag} is {variable}] in:\n{help}", command.get_name());
        }
        assert!(flags > 0, "tally {} has flags", command.get_name());
    }
}

/// A server in this process that is shutting down, is full, and whose list breaks off.
struct Unwell {
    _runtime: Runtime,
    address: String,
}

impl Unwell {
    fn start() -> Self {
        Self::with(Wrong)
    }

    fn with(numstore: impl NumStore) -> Self {
        let runtime = Runtime::new().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (reporter, health) = tonic_health::server::health_reporter();
        runtime.block_on(reporter.set_service_status("", ServingStatus::NotServing));
        let server = tonic::transport::Server::builder()
            .add_service(health)
            .add_service(TallyServer::new(Full))
            .add_service(NumStoreServer::new(numstore));
        runtime.spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        Self { _runtime: runtime, address }
    }
}

struct Full;

#[tonic::async_trait]
impl Tally for Full {
    type ListPartsStream = BoxStream<'static, Result<Receipt, Status>>;
    type GroupSumStream = BoxStream<'static, Result<GroupBlock, Status>>;
    type VerifyStream = BoxStream<'static, Result<VerifyProgress, Status>>;

    async fn upload(&self, _: Request<Streaming<UploadChunk>>) -> Result<Response<Receipt>, Status> {
        Err(Status::resource_exhausted("the disk is full: \u{1b}[31m0 bytes are left"))
    }

    async fn list_parts(&self, _: Request<ListPartsRequest>) -> Result<Response<Self::ListPartsStream>, Status> {
        let receipt = Receipt { part: 1, rows: 2, uploaded_at: "\u{1b}[31mtoday".to_owned(), ..Receipt::default() };
        Ok(Response::new(stream::iter([Ok(receipt), Err(Status::data_loss("part 2 is damaged"))]).boxed()))
    }

    async fn group_sum(&self, _: Request<GroupSumRequest>) -> Result<Response<Self::GroupSumStream>, Status> {
        Err(Status::unavailable("the server is shutting down"))
    }

    /// As a server that is older than the call.
    async fn list_quarantine(
        &self,
        _: Request<ListQuarantineRequest>,
    ) -> Result<Response<ListQuarantineResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn verify(&self, _: Request<VerifyRequest>) -> Result<Response<Self::VerifyStream>, Status> {
        let damaged = DamagedFile { file: "parts/1.csv".to_owned(), what: "\u{1b}[31mdamaged".to_owned() };
        let progress = VerifyProgress { files: 1, bytes: 2, damaged: vec![damaged] };
        Ok(Response::new(stream::iter([Ok(progress), Err(Status::unavailable("shutting down"))]).boxed()))
    }

    async fn forget(&self, request: Request<ForgetRequest>) -> Result<Response<ForgetResponse>, Status> {
        Err(Status::not_found(format!("part {} is not in quarantine", request.into_inner().part)))
    }
}

/// It takes its time.
struct Slow;

const SLOW_MS: u64 = 20;

#[tonic::async_trait]
impl NumStore for Slow {
    async fn set_num(&self, _: Request<SetNumRequest>) -> Result<Response<SetNumResponse>, Status> {
        tokio::time::sleep(Duration::from_millis(SLOW_MS)).await;
        Ok(Response::new(SetNumResponse { total: 1 }))
    }

    async fn fact(&self, _: Request<FactRequest>) -> Result<Response<FactResponse>, Status> {
        tokio::time::sleep(Duration::from_millis(SLOW_MS)).await;
        Ok(Response::new(FactResponse { value: 1, hit: false, error: String::new() }))
    }
}

/// Its factorials are none, and it has no room for a number.
struct Wrong;

#[tonic::async_trait]
impl NumStore for Wrong {
    async fn set_num(&self, request: Request<SetNumRequest>) -> Result<Response<SetNumResponse>, Status> {
        match request.into_inner().value {
            15 => Err(Status::resource_exhausted("there are 0 keys, which is the limit")),
            value => Ok(Response::new(SetNumResponse { total: value })),
        }
    }

    async fn fact(&self, request: Request<FactRequest>) -> Result<Response<FactResponse>, Status> {
        match request.into_inner().key.as_str() {
            "key0" => Ok(Response::new(FactResponse { value: 121, hit: true, error: String::new() })),
            "key1" => {
                Ok(Response::new(FactResponse { error: "key \"key1\" is not set".to_owned(), ..Default::default() }))
            }
            "key2" => {
                Ok(Response::new(FactResponse { error: "key \"key0\" is not set".to_owned(), ..Default::default() }))
            }
            _ => std::future::pending().await,
        }
    }
}

#[test]
fn load_is_reported_and_the_same_again_with_the_same_seed() {
    let load = |server: &Server, clients: &str, keys: &str| {
        let arguments = ["load-numstore", "--json", "--requests", "500", "--seed", "7"];
        let command = run(server.tally(arguments).args(["--clients", clients, "--keys", keys]));
        let lines = command.json_lines();
        command.succeeded();
        assert_eq!(lines.len(), 1);
        lines.into_iter().next().unwrap()
    };
    let count = |report: &Value, name: &str| report[name].as_u64().unwrap();

    let one = load(&Server::start(), "1", "20");
    let again = load(&Server::start(), "1", "20");
    for name in ["requests", "set_num", "fact", "not_set", "hits", "hit_rate", "seed", "clients"] {
        assert_eq!(one[name], again[name], "{name}");
    }
    assert!(count(&one, "set_num") > 200 && count(&one, "fact") > 200, "half of each: {one}");
    assert!(count(&one, "not_set") > 0 && count(&one, "hits") > 0, "{one}");

    let server = Server::start();
    let many = load(&server, "8", "100");
    assert_eq!(count(&many, "requests"), 8 * 500);
    assert_eq!(count(&many, "set_num") + count(&many, "fact"), 8 * 500);
    let answered = count(&many, "fact") - count(&many, "not_set");
    let hit_rate = many["hit_rate"].as_f64().unwrap();
    assert!((hit_rate - count(&many, "hits") as f64 / answered as f64).abs() < 1e-12, "{many}");
    let times = ["p50_ms", "p90_ms", "p99_ms", "p999_ms", "max_ms"].map(|name| many[name].as_f64().unwrap());
    assert!(times.is_sorted() && times[0] > 0.001, "{many}");
    assert!(load(&server, "8", "100")["not_set"] == 0, "all keys are set by now");

    let text = run(&mut server.tally(["load-numstore", "--requests", "50", "--rate", "100000"])).succeeded();
    for name in ["requests  ", "requests a second", "cache hit rate", "p50     response time", "p99     response time"]
    {
        assert_eq!(text.lines().filter(|line| line.starts_with(name)).count(), 1, "{name} in {text}");
    }
    let (_, histogram) = text.split_once("response time in ms").unwrap();
    let counts = histogram.lines().skip(1).map(|line| line.split_whitespace().nth(3).unwrap().parse::<u64>().unwrap());
    assert_eq!(counts.sum::<u64>(), 8 * 50, "{text}");
}

/// Also when other clients still wait for theirs.
#[test]
fn load_stops_at_an_answer_that_is_wrong() {
    let unwell = Unwell::start();
    let load = |clients: &str, keys: &str, seed: &str| {
        let arguments = ["load-numstore", "--clients", clients, "--keys", keys, "--seed", seed];
        run(tally(arguments).env("TALLY_SERVER", &unwell.address)).failed().join("; ")
    };
    let said: Vec<_> = (0..40).map(|seed| load("1", "3", &seed.to_string())).collect();
    for expected in [
        "error: key0: 121 is not a factorial of 1 to 15",
        "error: key \"key0\" is not set",
        "error: there are 0 keys, which is the limit",
    ] {
        assert!(said.iter().any(|line| line == expected), "{expected} in {said:?}");
    }
    // Of 50 keys nearly all are never answered, so most clients hang.
    assert!(load("30", "50", "1").starts_with("error: "));
}

#[test]
fn requests_that_are_due_at_fixed_times_count_from_then() {
    let report = |server: &str, arguments: &[&str]| {
        let said = run(tally(["load-numstore", "--json", "--seed", "5"]).args(arguments).env("TALLY_SERVER", server));
        said.json_lines().pop().unwrap()
    };
    let server = Server::start();
    let paced = report(&server.address, &["--clients", "2", "--requests", "10", "--rate", "40"]);
    // The last of 20 requests is due 19 / 40 s after the first.
    assert!(paced["seconds"].as_f64().unwrap() >= 0.475, "{paced}");
    assert_eq!(paced["rate"], 40);

    // Due a millisecond after one another, each waits for all before it.
    let slow = Unwell::with(Slow);
    let late = report(&slow.address, &["--clients", "1", "--requests", "10", "--rate", "1000"]);
    let (p50_ms, max_ms) = (late["p50_ms"].as_f64().unwrap(), late["max_ms"].as_f64().unwrap());
    assert!(max_ms >= 10.0 * SLOW_MS as f64 - 10.0 && p50_ms >= 5.0 * SLOW_MS as f64 - 10.0, "{late}");
}

#[test]
fn the_words_of_the_server_are_the_error() {
    let server = Unwell::start();
    let folder = TempDir::new().unwrap();
    let (small, large) = (folder.path().join("small.csv"), folder.path().join("large.csv"));
    fs::write(&small, "x\n1\n").unwrap();
    fs::write(&large, "x\n".repeat(4 << 20)).unwrap();
    for file in [small.to_str().unwrap(), large.to_str().unwrap()] {
        let said = run(&mut tally(["upload", "--server", &server.address, file]));
        let expected = format!("error: {file}: the disk is full: \\u{{1b}}[31m0 bytes are left");
        assert_eq!(said.failed(), [expected]);
    }

    let said = run(&mut tally(["sum", "x", "--server", &server.address]));
    assert_eq!(said.failed().len(), 1, "a server without Table: {said:?}");
}

#[test]
fn a_list_that_breaks_off_is_a_failure_and_shows_what_came() {
    let server = Unwell::start();
    for how in [&["parts"][..], &["parts", "--json"], &["parts", "--columns"]] {
        let said = run(tally(how).args(["--server", &server.address]));
        assert_eq!(said.failed(), ["error: part 2 is damaged"]);
        assert!(said.out.contains("1b") && said.out.contains("[31mtoday"), "{said:?}");
        assert!(!said.out.contains('\u{1b}'), "{said:?}");
    }
}

#[test]
fn a_verification_that_breaks_off_is_a_failure_and_shows_what_came() {
    let server = Unwell::start();
    for how in [&["verify"][..], &["verify", "--json"]] {
        let said = run(tally(how).args(["--server", &server.address]));
        assert_eq!(said.failed(), ["error: shutting down"]);
        assert!(
            said.out.starts_with(if how.len() > 1 { "{\"file\":\"parts/1.csv\"" } else { "parts/1.csv: " }),
            "{said:?}"
        );
        assert!(!said.out.contains('\u{1b}') && said.out.lines().count() == 1, "{said:?}");
    }
}

#[test]
fn a_server_that_does_not_serve_is_unhealthy() {
    let server = Unwell::start();
    let said = run(&mut tally(["health", "--server", &server.address]));
    assert_eq!((said.code, said.out.as_str(), said.err.as_str()), (Some(1), "not serving\n", ""));
    let said = run(&mut tally(["health", "--json", "--server", &server.address]));
    assert_eq!((said.code, said.json_lines()), (Some(1), vec![json!({"status": "not serving"})]));
}
