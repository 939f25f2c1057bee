//! `tally files`: the files of the table, for other engines.

use std::{
    io::{self, BufWriter, Write},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, ValueEnum, builder::BoolishValueParser};
use serde::Serialize;
use tonic::Streaming;

use super::{
    connect::{ClientArgs, call_failure, connect},
    failure::Failure,
    links::{Links, check_folder, link, name_of},
    output::write_json,
    server_addr::ServerAddr,
};
use crate::proto::pb::tally::{
    self, ListFilesRequest, ListFilesResponse, RemovedRows, TableFile, tally_client::TallyClient,
};

/// List the files of the table for other engines
///
/// One path a line, in the data folder: the Parquet files that have each row of the table exactly
/// once, as it is at one moment. The server may replace listed files at any time, when it packs
/// small parts or when a part is removed: they are then found in removed/ instead of parts/, for
/// at least 60 s. With --link, the files get hard links in a new folder, which stay.
#[derive(Debug, Args)]
#[command(
    verbatim_doc_comment,
    after_help = "Examples:\n  \
        tally files --data /srv/table\n  \
        tally files --data /srv/table --link /srv/now     then read /srv/now/*.parquet, and delete it\n  \
        tally files --json --with-removed                 with rows that are not in the table any more\n  \
        tally files --json --format csv                   parts as byte ranges of CSV files"
)]
pub struct FilesArgs {
    /// Which files. Many parts share a CSV file, each with its header, once they are packed: then --json is needed, which
    /// shows where each part begins and how long it is
    #[arg(long, env = "TALLY_FORMAT", hide_env_values = true, default_value = "parquet")]
    pub format: FilesFormat,

    /// The server's data folder: paths begin with it
    #[arg(long, value_name = "DIR", env = "TALLY_DATA", hide_env_values = true)]
    pub data: Option<PathBuf>,

    /// List files that have rows of removed parts, too, and after all files the positions of these rows
    #[arg(long, env = "TALLY_WITH_REMOVED", hide_env_values = true, value_parser = BoolishValueParser::new(), requires = "json")]
    pub with_removed: bool,

    /// Make this folder, on the file system of the data folder, with a hard link to each file, and print the paths of the links
    #[arg(long, value_name = "DIR", env = "TALLY_LINK", hide_env_values = true, requires = "data")]
    pub link: Option<PathBuf>,

    /// Where and how to ask.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// The copies that the server keeps of each upload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FilesFormat {
    /// Parts of CSV files.
    Csv,
    /// Whole Parquet files.
    Parquet,
}

#[derive(Serialize)]
struct FileJson<'a> {
    path: &'a str,
    first_part: u64,
    last_part: u64,
    parts: u64,
    rows: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<u64>,
    bytes: u64,
}

#[derive(Serialize)]
struct RemovedJson<'a> {
    path: &'a str,
    removed_part: u64,
    first_row: u64,
    rows: u64,
}

pub(super) async fn run(args: FilesArgs) -> Result<ExitCode, Failure> {
    let FilesArgs { format, data, with_removed, link, client: ClientArgs { server, json, credentials } } = args;
    let mut client = TallyClient::new(connect(&server, &credentials).await?);
    let wanted = match format {
        FilesFormat::Csv => tally::Format::Csv,
        FilesFormat::Parquet => tally::Format::Parquet,
    };
    let request = ListFilesRequest { format: wanted.into(), with_removed };
    let mut answer = client.list_files(request).await.map_err(|status| call_failure(&server, &status))?.into_inner();
    let head = next(&server, &mut answer).await?.and_then(|answer| answer.head);
    let head = head.ok_or_else(|| Failure::WrongAnswer("the list of files has no beginning".to_owned()))?;
    if format == FilesFormat::Csv && head.segments > 0 && (link.is_some() || !json) {
        return Err(Failure::Refused(
            "parts are packed, so that many share a CSV file: `tally files --format csv --json` shows where each begins"
                .to_owned(),
        ));
    }
    if let (Some(data), Some(_)) = (&data, &link) {
        check_folder(data, &head)?;
    }
    let place =
        Place { data: data.unwrap_or_default(), links: link.map(|folder| Links::make(folder, &[])).transpose()? };
    let mut out = BufWriter::new(io::stdout());
    while let Some(ListFilesResponse { files, removed, .. }) = next(&server, &mut answer).await? {
        for file in &files {
            write_file(&mut out, json, &place.take(&file.path)?, file)?;
        }
        for rows in &removed {
            write_removed(&mut out, &place.path(&rows.path), rows)?;
        }
    }
    out.flush()?;
    if let Some(links) = place.links {
        links.keep();
    }
    Ok(ExitCode::SUCCESS)
}

async fn next(
    server: &ServerAddr,
    answer: &mut Streaming<ListFilesResponse>,
) -> Result<Option<ListFilesResponse>, Failure> {
    answer.message().await.map_err(|status| call_failure(server, &status))
}

fn write_file(out: &mut impl Write, json: bool, path: &Path, file: &TableFile) -> io::Result<()> {
    if !json {
        out.write_all(path.as_os_str().as_bytes())?;
        return out.write_all(b"\n");
    }
    let TableFile { first_part, last_part, parts, rows, offset, bytes, .. } = *file;
    let path = &path.to_string_lossy();
    write_json(out, &FileJson { path, first_part, last_part, parts, rows, offset, bytes })
}

fn write_removed(out: &mut impl Write, path: &Path, removed: &RemovedRows) -> io::Result<()> {
    let RemovedRows { part: removed_part, first_row, rows, .. } = *removed;
    write_json(out, &RemovedJson { path: &path.to_string_lossy(), removed_part, first_row, rows })
}

/// Where the files are for the reader.
struct Place {
    data: PathBuf,
    links: Option<Links>,
}

impl Place {
    /// The path of a file, which is first linked if there are links.
    fn take(&self, file: &str) -> Result<PathBuf, Failure> {
        let path = self.path(file);
        if self.links.is_some() {
            link(&self.data, &[file.to_owned(), format!("removed/{}", name_of(file))], &path)?;
        }
        Ok(path)
    }

    fn path(&self, file: &str) -> PathBuf {
        match &self.links {
            None => self.data.join(file),
            Some(links) => links.folder().join(name_of(file)),
        }
    }
}
