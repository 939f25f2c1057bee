//! The flags of `tally serve` and their environment variables, as one checked [`Config`].
//!
//! Only this module and `cli/` read the environment, and only they and `main.rs` know clap: the types that clap parses
//! are turned into plain ones here.

pub mod access;

use std::{
    ffi::OsStr,
    io,
    net::{SocketAddr, ToSocketAddrs},
    os::unix::ffi::OsStrExt,
    path::PathBuf,
    str::FromStr,
    thread::available_parallelism,
    time::Duration,
};

use clap::{
    Arg, Args, Command, ValueEnum,
    builder::{PathBufValueParser, TypedValueParser},
    parser::ValueSource,
    value_parser,
};
use http::uri::Authority;

use self::access::{AccessArgs, AccessConfig};
use crate::{
    limits::{
        CELL_BYTES_MAX, COLUMNS_MAX, CsvLimits, Incomplete, JOBS_UNFINISHED_MAX, JobLimits, Limits, PACK_ABOVE,
        PACK_BYTES_PER_S, PARTS_MAX, ROW_BYTES_CEILING, ROW_BYTES_MAX, SURVEYS_AT_ONCE_MAX, UPLOAD_BYTES_MAX,
        UPLOADS_MAX,
    },
    model::{
        dialect::{Decompress, Delimiter, Dialect, Encoding, NullTexts},
        durability::Durability,
        file_mode::FileMode,
    },
};

/// Run the server: the table and NumStore over gRPC, and jobs over HTTP, until SIGTERM or SIGINT.
///
/// Prints one line on standard output when it is ready; logs go to standard error. After a signal it accepts no more calls,
/// running calls may take 30 s to finish (5 s if their client neither sends nor reads), and the exit code is 0. A second
/// signal ends it at once.
///
/// Example: tally serve --data /srv/table --grpc 127.0.0.1:5440 --http 127.0.0.1:5000
#[derive(Args, Clone, Debug)]
pub struct ServeArgs {
    /// Folder that holds the table; it is created if it does not exist. Only one server at a time can use it.
    #[arg(long, env = "TALLY_DATA", value_name = "DIR", default_value = "./tally-data")]
    pub data: PathBuf,

    /// CSV files to append to the table before the server is ready. A file that equals a part, byte for byte, is skipped.
    ///
    /// Each argument is one file, and the flag may be repeated: --load a.csv b.csv --load c.csv. In TALLY_LOAD, commas
    /// separate the files.
    #[arg(long, env = "TALLY_LOAD", value_name = "FILE", num_args = 1.., value_parser = LoadedFilesParser)]
    pub load: Vec<LoadedFiles>,

    /// What separates the cells of the files of --load: one ASCII character, or tab. A comma if it is not given.
    ///
    /// A file with this or another --load- flag is stored as the plain CSV that it means. It is skipped if a part has the
    /// same CSV.
    #[arg(long, env = "TALLY_LOAD_DELIMITER", value_name = "CHAR")]
    pub load_delimiter: Option<Delimiter>,

    /// Encoding of the files of --load, by a name of the WHATWG Encoding Standard. UTF-8 if it is not given.
    #[arg(long, env = "TALLY_LOAD_ENCODING", value_name = "NAME")]
    pub load_encoding: Option<Encoding>,

    /// Cells of the files of --load with this text have no value; may be repeated.
    #[arg(long, env = "TALLY_LOAD_NULL", value_name = "TEXT")]
    pub load_null: Vec<String>,

    /// Remove white space around names and cells of the files of --load.
    #[arg(long, env = "TALLY_LOAD_TRIM")]
    pub load_trim: bool,

    /// Remove empty cells beyond the last column that has a name, in the files of --load.
    #[arg(long, env = "TALLY_LOAD_DROP_TRAILING_EMPTY")]
    pub load_drop_trailing_empty: bool,

    /// How the files of --load are compressed: gzip, zstd, or auto (one of these if the file begins like it).
    #[arg(long, env = "TALLY_LOAD_DECOMPRESS", value_name = "WHAT")]
    pub load_decompress: Option<Decompress>,

    /// Address for gRPC; may be repeated. Port 0 means a free port, which the ready line names.
    ///
    /// An address that other machines can reach needs `--token-file` or `--insecure-allow-anyone`. On a machine without IPv6, an
    /// IPv6 address is ignored if there is another address.
    #[arg(
        long,
        env = "TALLY_GRPC",
        value_name = "ADDR",
        value_delimiter = ',',
        default_values = ["127.0.0.1:5440", "[::1]:5440"]
    )]
    pub grpc: Vec<ListenAddress>,

    /// Address for HTTP; may be repeated. Port 0 means a free port, which the ready line names. `none`, as the only value,
    /// turns HTTP off.
    ///
    /// An address that other machines can reach needs `--token-file` or `--insecure-allow-anyone`. If a browser sends a request
    /// for the page of another site, and the request would change something, it is refused, unless `--allowed-origin` names that
    /// site.
    #[arg(
        long,
        env = "TALLY_HTTP",
        value_name = "ADDR",
        value_delimiter = ',',
        default_values = ["127.0.0.1:5000", "[::1]:5000"]
    )]
    pub http: Vec<HttpAddress>,

    /// Address that answers only the probes `/livez` and `/readyz`, over HTTP; may be repeated. Clients of the other
    /// addresses cannot use up its connections. The ready line names it.
    #[arg(long, env = "TALLY_PROBE", value_name = "ADDR", value_delimiter = ',')]
    pub probe: Vec<ListenAddress>,

    /// Who may call.
    #[command(flatten)]
    pub access: AccessArgs,

    /// Origin of a front end whose pages may use HTTP as the server's own pages may; may be repeated. For example
    /// `http://localhost:3000`. Its preflights are answered (CORS).
    #[arg(long, env = "TALLY_ALLOWED_ORIGIN", value_name = "URL", value_delimiter = ',')]
    pub allowed_origin: Vec<AllowedOrigin>,

    /// Name by which a proxy on this machine reaches an HTTP address on loopback; may be repeated. Other requests on loopback
    /// are refused unless their `Host` is this machine.
    #[arg(long, env = "TALLY_ALLOWED_HOST", value_name = "NAME", value_delimiter = ',', value_parser = host_name)]
    pub allowed_host: Vec<String>,

    /// What an acknowledged upload survives: with `fsync` also a power failure, with `none` only the end of the process.
    #[arg(long, env = "TALLY_DURABILITY", value_name = "WHAT", default_value = "fsync")]
    pub durability: DurabilityFlag,

    /// What sums, group sums and statistics answer while a damaged part is in quarantine. `refuse`: the error DATA_LOSS,
    /// which names the part, until the part is restored or its loss is accepted with `tally forget`. `answer`: the result
    /// over the other parts.
    #[arg(long, env = "TALLY_INCOMPLETE", value_name = "WHAT", default_value = "refuse")]
    pub incomplete: IncompleteFlag,

    /// Permissions of the files in the data folder, in octal, whatever the umask is. For example, 0640 lets the group read
    /// them. Whoever may read the files may also enter their folders. Existing files are changed at start.
    #[arg(long, env = "TALLY_FILE_MODE", value_name = "MODE", default_value = "0600")]
    pub file_mode: FileMode,

    /// Seconds between two background verifications of everything that is stored: each file is read and compared with its
    /// checksums. Damaged files are logged, counted in `tally_damaged_files`, and left where they are. Off by default.
    #[arg(long, visible_alias = "scrub-interval", env = "TALLY_SCRUB_INTERVAL_S", value_name = "SECONDS", value_parser = value_parser!(u64).range(1..=31_536_000))]
    pub scrub_interval_s: Option<u64>,

    /// Seconds for which a removed part can be restored with `tally restore`; after that its files are deleted.
    #[arg(long, env = "TALLY_UNDO_S", value_name = "SECONDS", default_value_t = 86_400, value_parser = value_parser!(u64).range(1..=31_536_000))]
    pub undo_s: u64,

    /// Small parts that keep their own files; the oldest beyond that are packed together, which clients do not see.
    #[arg(long, env = "TALLY_PACK_ABOVE", value_name = "PARTS", default_value_t = PACK_ABOVE)]
    pub pack_above: usize,

    /// Bytes of CSV that packing reads in a second, at most.
    #[arg(long, env = "TALLY_PACK_BYTES_PER_S", value_name = "BYTES", default_value_t = PACK_BYTES_PER_S, value_parser = value_parser!(u64).range(1..))]
    pub pack_bytes_per_s: u64,

    /// Maximum number of columns of a file.
    #[arg(long, env = "TALLY_COLUMNS_MAX", value_name = "N", default_value_t = COLUMNS_MAX, value_parser = up_to(COLUMNS_MAX))]
    pub columns_max: usize,

    /// Maximum size of a cell, without its quotes, in bytes.
    #[arg(long, env = "TALLY_CELL_BYTES_MAX", value_name = "BYTES", default_value_t = CELL_BYTES_MAX, value_parser = up_to(ROW_BYTES_CEILING))]
    pub cell_bytes_max: usize,

    /// Maximum size of a row in the file, in bytes.
    #[arg(long, env = "TALLY_ROW_BYTES_MAX", value_name = "BYTES", default_value_t = ROW_BYTES_MAX, value_parser = up_to(ROW_BYTES_CEILING))]
    pub row_bytes_max: usize,

    /// Maximum size of an upload, in bytes. An upload in one message can have at most 2 GiB - 1.
    #[arg(long, env = "TALLY_UPLOAD_BYTES_MAX", value_name = "BYTES", default_value_t = UPLOAD_BYTES_MAX, value_parser = value_parser!(u64).range(1..))]
    pub upload_bytes_max: u64,

    /// Maximum number of uploads at once; one connection may have half of them. One more waits for up to 3 s, and is then
    /// refused with RESOURCE_EXHAUSTED. While it waits, an upload that is 2 s behind a rate of 1 KiB/s is ended for it.
    #[arg(long, env = "TALLY_UPLOADS_MAX", value_name = "N", default_value_t = UPLOADS_MAX, value_parser = up_to(UPLOADS_MAX))]
    pub uploads_max: usize,

    /// Seconds without a byte after which an upload is ended. Over HTTP, a JSON body must arrive completely within this time,
    /// and a form must bring 1 KiB for each second.
    #[arg(long, env = "TALLY_UPLOAD_IDLE_S", value_name = "SECONDS", default_value_t = 60, value_parser = value_parser!(u64).range(1..=86_400))]
    pub upload_idle_s: u64,

    /// Maximum number of parts that have their own files; more uploads are refused with RESOURCE_EXHAUSTED. The log warns at
    /// 80 %. Packed parts do not count.
    #[arg(long, env = "TALLY_PARTS_MAX", value_name = "N", default_value_t = PARTS_MAX, value_parser = up_to(PARTS_MAX))]
    pub parts_max: usize,

    /// Seconds without progress after which a gRPC call is ended (its request does not arrive) or its connection is closed
    /// (its answer is not read). Time in which the server works does not count. For uploads, `--upload-idle-s` applies
    /// instead.
    #[arg(long, env = "TALLY_CALL_TIMEOUT_S", value_name = "SECONDS", default_value_t = 60, value_parser = value_parser!(u64).range(1..=86_400))]
    pub call_timeout_s: u64,

    /// Maximum number of jobs that wait or run; one more is refused.
    #[arg(long, env = "TALLY_JOBS_MAX", value_name = "N", default_value_t = JOBS_UNFINISHED_MAX, value_parser = up_to(JOBS_UNFINISHED_MAX))]
    pub jobs_max: usize,

    /// Maximum number of statistics that run at once. They share memory: one that finds none waits. By default the number of
    /// cores, and 8 at most.
    #[arg(long, env = "TALLY_STATISTICS_AT_ONCE", value_name = "N", value_parser = up_to(SURVEYS_AT_ONCE_MAX))]
    pub statistics_at_once: Option<usize>,

    /// The same, by the name that it has in the original statistics servers. More than 8 means 8.
    #[arg(long, env = "TP_NUM_OF_THREADS", hide = true, value_name = "N", value_parser = up_to(usize::MAX))]
    pub tp_num_of_threads: Option<usize>,

    /// Seconds after which a job that has ended is removed, with its result.
    #[arg(long, env = "TALLY_JOBS_AGE_S", value_name = "SECONDS", default_value_t = 86_400, value_parser = value_parser!(u64).range(1..=31_536_000))]
    pub jobs_age_s: u64,

    /// Maximum size of all results of jobs together, in bytes; above that, the oldest are removed with their jobs.
    #[arg(long, env = "TALLY_JOBS_BYTES_MAX", value_name = "BYTES", default_value_t = 10 * 1024 * 1024 * 1024)]
    pub jobs_bytes_max: u64,

    /// Seconds between two removals of downloaded results and old jobs, and minimum age of a downloaded result. Removals of files
    /// that failed are tried again as often.
    #[arg(long, env = "TALLY_JOBS_SWEEP_S", value_name = "SECONDS", default_value_t = 30, value_parser = value_parser!(u64).range(1..=86_400))]
    pub jobs_sweep_s: u64,

    /// What is logged to standard error: error, warn, info, debug, trace, or a tracing filter such as `tally=debug`.
    #[arg(long, env = "TALLY_LOG", value_name = "FILTER", default_value = "info", value_parser = log_filter)]
    pub log: String,

    /// Also log the content of cells that errors are about. Otherwise the log has names of columns, but no content of cells.
    #[arg(long, env = "TALLY_LOG_VALUES")]
    pub log_values: bool,

    /// Format of the log.
    #[arg(long, env = "TALLY_LOG_FORMAT", value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,

    /// File to which HTTP calls, and what becomes of jobs, are appended, in UTC. It is rotated. If the disk is too slow or
    /// full, lines are dropped, and `tally_log_file_lines_dropped_total` in `/metrics` counts them; calls never wait.
    #[arg(long, env = "TALLY_LOG_FILE", value_name = "PATH")]
    pub log_file: Option<PathBuf>,

    /// Size at which the log file is rotated, in bytes: it is renamed to PATH.1.
    #[arg(long, env = "TALLY_LOG_FILE_BYTES_MAX", value_name = "BYTES", default_value_t = 10_485_760, value_parser = up_to(usize::MAX))]
    pub log_file_bytes_max: usize,

    /// Number of rotated log files that are kept.
    #[arg(long, env = "TALLY_LOG_FILES_KEPT", value_name = "N", default_value_t = 5, value_parser = up_to(1000))]
    pub log_files_kept: usize,

    /// File to which each call is appended as a JSON object in a line: when, which token or address, what, and how it ended. Also
    /// starts, stops and tokens that were read again. It is rotated, and synced once a second. Only its owner can read it.
    #[arg(long, env = "TALLY_AUDIT_LOG", value_name = "PATH")]
    pub audit_log: Option<PathBuf>,

    /// Size at which the audit log is rotated, in bytes: it is renamed to PATH.1.
    #[arg(long, env = "TALLY_AUDIT_LOG_BYTES_MAX", value_name = "BYTES", default_value_t = 67_108_864, value_parser = up_to(usize::MAX))]
    pub audit_log_bytes_max: usize,

    /// Number of rotated audit logs that are kept.
    #[arg(long, env = "TALLY_AUDIT_LOGS_KEPT", value_name = "N", default_value_t = 10, value_parser = up_to(1000))]
    pub audit_logs_kept: usize,
}

/// The files that one value of `--load` or of `TALLY_LOAD` names.
#[derive(Clone, Debug)]
pub struct LoadedFiles(Vec<PathBuf>);

/// Takes an argument as one file, so that its name may have commas, and the environment variable as a list.
#[derive(Clone)]
struct LoadedFilesParser;

impl TypedValueParser for LoadedFilesParser {
    type Value = LoadedFiles;

    fn parse_ref(&self, command: &Command, arg: Option<&Arg>, value: &OsStr) -> Result<LoadedFiles, clap::Error> {
        PathBufValueParser::new().parse_ref(command, arg, value).map(|file| LoadedFiles(vec![file]))
    }

    fn parse_ref_(
        &self,
        command: &Command,
        arg: Option<&Arg>,
        value: &OsStr,
        source: ValueSource,
    ) -> Result<LoadedFiles, clap::Error> {
        if source != ValueSource::EnvVariable {
            return self.parse_ref(command, arg, value);
        }
        let names = value.as_bytes().split(|byte| *byte == b',').map(OsStr::from_bytes);
        names
            .map(|name| PathBufValueParser::new().parse_ref(command, arg, name))
            .collect::<Result<_, _>>()
            .map(LoadedFiles)
    }
}

/// Where to listen, as `127.0.0.1:5440`, `[::1]:5440` or a name and a port; a name can stand for several addresses.
#[derive(Clone, Debug)]
pub struct ListenAddress(Vec<SocketAddr>);

impl FromStr for ListenAddress {
    type Err = io::Error;

    fn from_str(text: &str) -> io::Result<Self> {
        Ok(Self(text.to_socket_addrs()?.collect()))
    }
}

/// A value of `--http`: an address, or `none`.
#[derive(Clone, Debug)]
pub enum HttpAddress {
    /// `none`: no HTTP.
    None,
    /// Where to listen.
    Some(ListenAddress),
}

impl FromStr for HttpAddress {
    type Err = io::Error;

    fn from_str(text: &str) -> io::Result<Self> {
        if text == "none" { Ok(Self::None) } else { text.parse().map(Self::Some) }
    }
}

/// A value of `--allowed-origin`, as browsers write an origin (RFC 6454, section 6.2): without a path, and without the port
/// that its scheme has by default.
#[derive(Clone, Debug)]
pub struct AllowedOrigin(String);

impl FromStr for AllowedOrigin {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "expected an origin such as http://localhost:3000".to_owned();
        let (scheme, name) = text.split_once("://").ok_or_else(wrong)?;
        let scheme = scheme.to_ascii_lowercase();
        let default_port = match scheme.as_str() {
            "http" => 80,
            "https" => 443,
            _ => return Err(wrong()),
        };
        let name: Authority = name.strip_suffix('/').unwrap_or(name).parse().map_err(|_no_name| wrong())?;
        let (host, port) = (name.host().to_ascii_lowercase(), name.port_u16());
        let is_whole = name.as_str().eq_ignore_ascii_case(&port.map_or(host.clone(), |port| format!("{host}:{port}")));
        if host.is_empty() || !is_whole || !host.is_ascii() {
            return Err(wrong());
        }
        let port = port.filter(|port| *port != default_port).map_or(String::new(), |port| format!(":{port}"));
        Ok(Self(format!("{scheme}://{host}{port}")))
    }
}

/// The values of `--durability`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum DurabilityFlag {
    /// Files and their folder are synced before the answer.
    Fsync,
    /// The operating system decides when it writes files to the disk.
    None,
}

impl From<DurabilityFlag> for Durability {
    fn from(flag: DurabilityFlag) -> Self {
        match flag {
            DurabilityFlag::Fsync => Self::Fsync,
            DurabilityFlag::None => Self::None,
        }
    }
}

/// The values of `--incomplete`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum IncompleteFlag {
    /// Refuse: the error names the part that is missing.
    Refuse,
    /// Answer from the other parts.
    Answer,
}

impl From<IncompleteFlag> for Incomplete {
    fn from(flag: IncompleteFlag) -> Self {
        match flag {
            IncompleteFlag::Refuse => Self::Refuse,
            IncompleteFlag::Answer => Self::Answer,
        }
    }
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// What the flags and the environment say, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// The data folder.
    pub data: PathBuf,
    /// Where gRPC listens.
    pub grpc: Vec<SocketAddr>,
    /// Where HTTP listens; empty if HTTP is off.
    pub http: Vec<SocketAddr>,
    /// The addresses that answer only probes; may be empty.
    pub probe: Vec<SocketAddr>,
    /// Who may call.
    pub access: AccessConfig,
    /// Origins of other front ends, as browsers write them.
    pub allowed_origins: Vec<String>,
    /// Names of proxies that `Host` may have on loopback.
    pub allowed_hosts: Vec<String>,
    /// The log of HTTP calls, if one is written.
    pub log_file: Option<LogFile>,
    /// The audit log, if one is written.
    pub audit_log: Option<LogFile>,
    /// What an acknowledged upload survives.
    pub durability: Durability,
    /// Permissions of the files in the data folder.
    pub file_mode: FileMode,
    /// The bounds that flags can change.
    pub limits: Limits,
    /// Files to append before serving, in this order.
    pub load: Vec<PathBuf>,
    /// The dialect of these files.
    pub load_dialect: Dialect,
}

/// The file of `--log-file` or of `--audit-log`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogFile {
    /// Absolute.
    pub path: PathBuf,
    /// The size at which it is rotated.
    pub bytes_max: usize,
    /// Rotated files that are kept beside it.
    pub files_kept: usize,
}

impl Config {
    /// Combines the flags; clap has checked each by itself.
    ///
    /// Errors: flags that contradict each other, or a log file whose absolute path cannot be found.
    pub fn of(args: &ServeArgs) -> Result<Self, String> {
        let [log_file, audit_log] = log_files(args)?;
        let grpc: Vec<_> = args.grpc.iter().flat_map(|address| address.0.clone()).collect();
        let http = http_addresses(&args.http)?;
        Ok(Self {
            data: args.data.clone(),
            access: AccessConfig::of(&args.access, grpc.iter().chain(&http).copied())?,
            grpc,
            http,
            probe: args.probe.iter().flat_map(|address| address.0.clone()).collect(),
            allowed_hosts: args.allowed_host.clone(),
            allowed_origins: args.allowed_origin.iter().map(|origin| origin.0.clone()).collect(),
            log_file,
            audit_log,
            durability: args.durability.into(),
            file_mode: args.file_mode,
            limits: limits(args),
            load: args.load.iter().flat_map(|files| files.0.clone()).collect(),
            load_dialect: Dialect {
                delimiter: args.load_delimiter,
                encoding: args.load_encoding,
                null: NullTexts::new(args.load_null.clone()).map_err(|error| format!("--load-null: {error}"))?,
                trim: args.load_trim,
                drop_trailing_empty: args.load_drop_trailing_empty,
                decompress: args.load_decompress,
            },
        })
    }
}

/// The files of `--log-file` and of `--audit-log`.
fn log_files(args: &ServeArgs) -> Result<[Option<LogFile>; 2], String> {
    let file = |flag: &str, path: &Option<PathBuf>, bytes_max, files_kept| match path {
        Some(path) => {
            let path = std::path::absolute(path).map_err(|error| format!("{flag}: {error}"))?;
            Ok::<_, String>(Some(LogFile { path, bytes_max, files_kept }))
        }
        None => Ok(None),
    };
    let log_file = file("--log-file", &args.log_file, args.log_file_bytes_max, args.log_files_kept)?;
    let audit_log = file("--audit-log", &args.audit_log, args.audit_log_bytes_max, args.audit_logs_kept)?;
    if log_file.as_ref().zip(audit_log.as_ref()).is_some_and(|(log, audit)| log.path == audit.path) {
        return Err("--audit-log: it must be another file than that of --log-file".to_owned());
    }
    Ok([log_file, audit_log])
}

fn limits(args: &ServeArgs) -> Limits {
    Limits {
        csv: CsvLimits {
            columns_max: args.columns_max,
            cell_bytes_max: args.cell_bytes_max,
            row_bytes_max: args.row_bytes_max,
        },
        upload_bytes_max: args.upload_bytes_max,
        uploads_max: args.uploads_max,
        parts_max: args.parts_max,
        upload_idle_max: Duration::from_secs(args.upload_idle_s),
        call_idle_max: Duration::from_secs(args.call_timeout_s),
        jobs: JobLimits {
            unfinished_max: args.jobs_max,
            statistics_at_once: statistics_at_once(args),
            age_max: Duration::from_secs(args.jobs_age_s),
            bytes_max: args.jobs_bytes_max,
            sweep_interval: Duration::from_secs(args.jobs_sweep_s),
        },
        scrub_interval: args.scrub_interval_s.map(Duration::from_secs),
        undo: Duration::from_secs(args.undo_s),
        incomplete: args.incomplete.into(),
        pack_above: args.pack_above,
        pack_bytes_per_s: args.pack_bytes_per_s,
    }
}

fn statistics_at_once(args: &ServeArgs) -> usize {
    let cores = || available_parallelism().map_or(1, usize::from);
    args.statistics_at_once.or(args.tp_num_of_threads).unwrap_or_else(cores).min(SURVEYS_AT_ONCE_MAX)
}

fn http_addresses(values: &[HttpAddress]) -> Result<Vec<SocketAddr>, String> {
    let mut addresses = Vec::new();
    for value in values {
        match value {
            HttpAddress::None if values.len() > 1 => {
                return Err("--http: none must be the only value".to_owned());
            }
            HttpAddress::None => {}
            HttpAddress::Some(address) => addresses.extend(&address.0),
        }
    }
    Ok(addresses)
}

/// Refuses a text that is not a filter. The text is kept because the filter itself cannot be cloned.
fn log_filter(text: &str) -> Result<String, tracing_subscriber::filter::ParseError> {
    tracing_subscriber::EnvFilter::try_new(text).map(|_filter| text.to_owned())
}

/// A host's name or address as `Host` has it, without a port.
fn host_name(text: &str) -> Result<String, String> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    let address = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    let is_valid = match address {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !text.is_empty() && text.chars().all(is_name),
    };
    is_valid
        .then(|| text.to_owned())
        .ok_or_else(|| "expected a host's name without a port, such as tally.example".to_owned())
}

/// Parses a number from 1 to a ceiling, for most flags the one that the memory sum in `limits.rs` counts with.
fn up_to(ceiling: usize) -> impl Fn(&str) -> Result<usize, String> + Clone {
    move |text| match text.parse() {
        Ok(value) if (1..=ceiling).contains(&value) => Ok(value),
        _ => Err(format!("expected a number from 1 to {ceiling}")),
    }
}

#[cfg(test)]
mod tests;
