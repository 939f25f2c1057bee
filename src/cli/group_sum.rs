//! `tally group-sum`: the group sums of a CSV file, without a server. It runs the engine's workers in this process, in the
//! memory that it is given.

use std::{
    env::temp_dir,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, value_parser};
use tempfile::{Builder, NamedTempFile};

use super::{failure::Failure, upload::progress::byte_bar};
use crate::{
    engine::group_by::{
        group_sum::GroupSum,
        sources::Sources,
        spec::{GroupBy, Plan},
    },
    error::Error,
    limits::MIB,
};

const GROUP_MEMORY_BYTES_DEFAULT: u64 = 64 * MIB as u64;
const GROUP_MEMORY_BYTES_MIN: u64 = MIB as u64;
const GROUP_MEMORY_BYTES_MAX: u64 = 1024 * 1024 * MIB as u64;

/// Print exact sums of a CSV file's columns, for each group of rows
///
/// A group is the rows with the same cells in the columns of --by. This command needs no server.
/// The file may be larger than memory and have any number of groups: groups that do not fit in
/// --memory-bytes are written to unnamed temporary files in --temp-dir. The result is CSV: a
/// header, then one row for each group, sorted by the bytes of the group's cells. An empty cell
/// adds nothing. A cell that is not an integer, or a total that does not fit in 64 bits, is an error.
#[derive(Debug, Args)]
#[command(
    verbatim_doc_comment,
    after_help = "Examples:\n  \
        tally group-sum plays.csv --by Song,Date --sum 'Number of Plays'\n  \
        tally group-sum plays.csv --by Song --by Date --sum 'Number of Plays' --output totals.csv\n  \
        tally group-sum cities.csv --by '\"City, State\"' --sum people      a name with a comma"
)]
pub struct GroupSumArgs {
    /// The CSV file
    #[arg(value_name = "FILE")]
    pub file: PathBuf,

    /// Columns to group by, written as a CSV row; may be repeated
    #[arg(long, value_name = "COLUMNS", env = "TALLY_BY", hide_env_values = true, required = true)]
    pub by: Vec<String>,

    /// Columns to sum, written as a CSV row; may be repeated
    #[arg(long, value_name = "COLUMNS", env = "TALLY_SUM", hide_env_values = true, required = true)]
    pub sum: Vec<String>,

    /// Write the result to this file, which appears when it is complete, not to standard output
    #[arg(long, value_name = "FILE", env = "TALLY_OUTPUT", hide_env_values = true)]
    pub output: Option<PathBuf>,

    /// Memory for groups, in bytes; the program itself takes about 20 MB more
    #[arg(long, value_name = "BYTES", env = "TALLY_MEMORY_BYTES", hide_env_values = true,
          default_value_t = GROUP_MEMORY_BYTES_DEFAULT, value_parser = value_parser!(u64).range(GROUP_MEMORY_BYTES_MIN..=GROUP_MEMORY_BYTES_MAX))]
    pub memory_bytes: u64,

    /// Folder for groups that do not fit in memory [default: the system's folder for temporary files]
    #[arg(long, value_name = "FOLDER", env = "TALLY_TEMP_DIR", hide_env_values = true)]
    pub temp_dir: Option<PathBuf>,
}

pub(super) async fn run(args: GroupSumArgs) -> Result<ExitCode, Failure> {
    let GroupSumArgs { file, by, sum, output, memory_bytes, temp_dir: folder } = args;
    let spec = GroupBy::parse(&by, &sum).map_err(|error| Failure::Refused(error.to_string()))?;
    let header = [spec.by(), spec.sum()].concat();
    let refused = |error: Error| Failure::Refused(format!("{}: {error}", file.display()));
    let sources = Sources::file(&file).map_err(refused)?;

    let bar = byte_bar(&file, Some(sources.bytes()));
    let plan = Plan::with_bytes(usize::try_from(memory_bytes).unwrap_or(usize::MAX));
    let group_sum = GroupSum::standalone(&folder.unwrap_or_else(temp_dir), plan).map_err(Failure::Input)?;
    let groups = group_sum.run(sources, spec, None, |bytes| bar.set_position(bytes)).await;
    bar.finish_and_clear();
    let groups = groups.map_err(refused)?;

    match output {
        None => {
            groups.write_csv(&header, io::stdout()).await.map_err(|error| not_written(error, refused))?;
        }
        Some(path) => {
            let output = Output::create(&path).map_err(|error| Failure::File(path.clone(), error))?;
            let written = groups.write_csv(&header, output).await.map_err(refused)?;
            written.publish(&path).map_err(|error| Failure::File(path, error))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The failure if the result was not written: that nobody reads standard output is not an error of the CSV file.
fn not_written(error: Error, refused: impl FnOnce(Error) -> Failure) -> Failure {
    match error {
        Error::Io { cause, .. } if cause.kind() == io::ErrorKind::BrokenPipe => Failure::Output(cause),
        error => refused(error),
    }
}

/// Where `--output` is written.
enum Output {
    /// A temporary file in the same folder. It is renamed when it is complete.
    Temporary(NamedTempFile),
    /// A device or a pipe, which cannot be replaced.
    Device(File),
}

impl Output {
    fn create(path: &Path) -> io::Result<Self> {
        if fs::metadata(path).is_ok_and(|metadata| !metadata.is_file()) {
            return File::options().write(true).open(path).map(Self::Device);
        }
        let folder = path.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."));
        let mut builder = Builder::new();
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666)); // minus the umask, as for any new file
        builder.prefix(".tally-").tempfile_in(folder).map(Self::Temporary)
    }

    fn publish(self, path: &Path) -> io::Result<()> {
        match self {
            Self::Temporary(file) => file.persist(path).map(drop).map_err(|failed| failed.error),
            Self::Device(_) => Ok(()),
        }
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Temporary(file) => file.write(bytes),
            Self::Device(file) => file.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(()) // nothing is buffered
    }
}
