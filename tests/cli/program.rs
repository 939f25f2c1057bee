//! Runs the program: as a client, and returns its output, and as a server on a port of its own.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{BufRead, BufReader, Write},
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
};

use serde_json::Value;
use socket2::{Domain, Socket, Type};
use tempfile::TempDir;

/// The program, without the TALLY_ settings of whoever runs the tests.
pub(crate) fn tally<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tally"));
    command.args(arguments).stdin(Stdio::null());
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("TALLY_") {
            command.env_remove(name);
        }
    }
    command
}

/// The output of a command, and its exit code.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Said {
    #[track_caller]
    pub(crate) fn succeeded(self) -> String {
        assert_eq!((self.code, self.err.as_str()), (Some(0), ""), "{self:?}");
        self.out
    }

    /// The lines of standard error of a command that failed.
    #[track_caller]
    pub(crate) fn failed(&self) -> Vec<&str> {
        assert_eq!(self.code, Some(1), "{self:?}");
        let lines: Vec<&str> = self.err.lines().collect();
        assert!(lines.iter().all(|line| line.starts_with("error: ")), "{self:?}");
        lines
    }

    pub(crate) fn json_lines(&self) -> Vec<Value> {
        self.out.lines().map(|line| serde_json::from_str(line).expect("a JSON value on each line")).collect()
    }
}

pub(crate) fn run(command: &mut Command) -> Said {
    let output = command.output().unwrap();
    Said {
        code: output.status.code(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

pub(crate) fn run_with_stdin(command: &mut Command, input: &[u8]) -> Said {
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
pub(crate) struct Server {
    pub(crate) process: Child,
    pub(crate) address: String,
    pub(crate) folder: TempDir,
    _stdout: BufReader<ChildStdout>,
}

impl Server {
    pub(crate) fn start() -> Self {
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
    pub(crate) fn tally<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut command = tally(arguments);
        command.env("TALLY_SERVER", &self.address).current_dir(self.folder.path());
        command
    }

    /// Writes a file into the folder in which the clients of this server run.
    pub(crate) fn file(&self, name: &str, bytes: impl AsRef<[u8]>) {
        fs::write(self.folder.path().join(name), bytes).unwrap();
    }

    pub(crate) fn upload(&self, csv: &str) {
        run_with_stdin(&mut self.tally(["upload", "-"]), csv.as_bytes()).succeeded();
    }

    pub(crate) fn sum(&self, column: &str) -> String {
        let mut sums = [vec!["sum"], vec!["sum", "--format", "csv"]].map(|command| {
            let mut said = run(&mut self.tally(command.into_iter().chain(["--", column])));
            if said.err.starts_with("no part has a column ") {
                said.err.clear(); // the sum is 0
            }
            said.succeeded()
        });
        assert_eq!(sums[0], sums[1]);
        std::mem::take(&mut sums[0])
    }

    pub(crate) fn parts(&self) -> Vec<Value> {
        run(&mut self.tally(["parts", "--json"])).json_lines()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A client that may wait for ever, and is killed when the test ends.
pub(crate) struct KilledAtEnd(pub(crate) Child);

impl Drop for KilledAtEnd {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// An address where nothing listens, and nothing can as long as the socket exists.
pub(crate) fn nobody() -> (Socket, String) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    (socket, address.to_string())
}

pub(crate) fn sample(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("inputs").join(name)
}
