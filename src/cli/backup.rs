//! `tally backup`: a copy of the table as it is at one moment, made of hard links while the server runs.

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use clap::Args;
use serde::Serialize;

use super::{
    connect::{ClientArgs, call_failure, connect},
    failure::Failure,
    links::{Links, check_folder, link, link_if_there, name_of, names_in},
    output::{rows_text, write_json},
};
use crate::proto::pb::tally::{self, FilesHead, ListFilesRequest, TableFile, tally_client::TallyClient};

/// Files of a segment besides its Parquet files that each segment has, and that it may have.
const OF_SEGMENT: [&str; 4] = ["segment", "csv", "index", "fences"];
const OF_SOME_SEGMENTS: [&str; 4] = ["sums", "index-sums", "fences-sums", "keys"];

/// Make a backup of the table while the server runs
///
/// The folder DIR gets a hard link to each file of the table as it is at one moment, whatever is
/// uploaded, packed or removed meanwhile. So it takes no space, and has to be on the file system
/// of the data folder: copy it to another machine or disk, verify the copy, and delete DIR.
/// A server can be started on the copy. It has no jobs, and no removed parts that could be
/// restored.
#[derive(Debug, Args)]
#[command(
    verbatim_doc_comment,
    after_help = "Examples:\n  \
        tally backup --data /srv/table /srv/now && rsync -a /srv/now/ backup:/srv/table/ && rm -r /srv/now"
)]
pub struct BackupArgs {
    /// The folder that is made
    #[arg(value_name = "DIR")]
    pub folder: PathBuf,

    /// The server's data folder
    #[arg(long, value_name = "DATA", env = "TALLY_DATA", hide_env_values = true, default_value = "tally-data")]
    pub data: PathBuf,

    /// Where and how to ask.
    #[command(flatten)]
    pub client: ClientArgs,
}

#[derive(Serialize)]
struct BackupJson {
    parts: u64,
    rows: u64,
    /// Links that were made.
    files: u64,
}

pub(super) async fn run(args: BackupArgs) -> Result<ExitCode, Failure> {
    let BackupArgs { folder, data, client: ClientArgs { server, json, credentials } } = args;
    let failed = |status| call_failure(&server, &status);
    let mut client = TallyClient::new(connect(&server, &credentials).await?);
    let request = ListFilesRequest { format: tally::Format::Parquet.into(), with_removed: true };
    let mut answer = client.list_files(request).await.map_err(failed)?.into_inner();
    let head = answer.message().await.map_err(failed)?.and_then(|page| page.head);
    let head = head.ok_or_else(|| Failure::WrongAnswer("the list of files has no beginning".to_owned()))?;
    check_folder(&data, &head)?;
    let mut backup = Backup { data, links: Links::make(folder, &["parts", "removed", "quarantine"])?, files: 0 };
    // The server keeps all files of the list until it has been read.
    while let Some(page) = answer.message().await.map_err(failed)? {
        page.files.iter().try_for_each(|file| backup.add(file))?;
        page.removed.iter().try_for_each(|removed| backup.mark_removed(removed.part))?;
    }
    backup.add_quarantine()?;
    let FilesHead { parts, rows, .. } = head;
    let files = backup.files;
    if json {
        write_json(&mut io::stdout(), &BackupJson { parts, rows, files })?;
    } else {
        let (folder, plural) = (backup.links.folder().display(), if parts == 1 { "" } else { "s" });
        writeln!(io::stdout(), "{folder}: {parts} part{plural}, {}, {files} files", rows_text(rows))?;
    }
    backup.links.keep();
    Ok(ExitCode::SUCCESS)
}

struct Backup {
    data: PathBuf,
    links: Links,
    files: u64,
}

impl Backup {
    /// Adds all files of the part or the segment that has this Parquet file.
    fn add(&mut self, file: &TableFile) -> Result<(), Failure> {
        let name = name_of(&file.path);
        let (stem, extension) = name.split_once('.').unwrap_or((name, ""));
        self.add_file(stem, extension, &[])?;
        if !stem.contains('-') {
            // The receipt of a part has another name once it is out of the table.
            self.add_file(stem, "json", &["replaced", "purged"])?;
            self.add_file(stem, "csv", &[])?;
            return self.add_if_there(stem, "sums");
        }
        if extension != "parquet" {
            return Ok(()); // its first file came before
        }
        OF_SEGMENT.into_iter().try_for_each(|extension| self.add_file(stem, extension, &[]))?;
        OF_SOME_SEGMENTS.into_iter().try_for_each(|extension| self.add_if_there(stem, extension))
    }

    fn add_file(&mut self, stem: &str, extension: &str, also: &[&str]) -> Result<(), Failure> {
        let mut paths = paths(stem, extension);
        paths.extend(also.iter().map(|extension| format!("removed/{stem}.{extension}")));
        link(&self.data, &paths, &self.links.folder().join(&paths[0]))?;
        self.files += 1;
        Ok(())
    }

    fn add_if_there(&mut self, stem: &str, extension: &str) -> Result<(), Failure> {
        let paths = paths(stem, extension);
        self.files += u64::from(link_if_there(&self.data, &paths, &self.links.folder().join(&paths[0]))?);
        Ok(())
    }

    /// Notes that a part of a segment is not in the table.
    fn mark_removed(&mut self, part: u64) -> Result<(), Failure> {
        // A copy of the table has no parts that can be restored, whether they are packed or not.
        self.links.add_empty(&format!("removed/{part}.packed-purged"))?;
        self.files += 1;
        Ok(())
    }

    /// Adds what is in quarantine.
    fn add_quarantine(&mut self) -> Result<(), Failure> {
        for name in names_in(&self.data.join("quarantine"))? {
            let path = format!("quarantine/{name}");
            let link = self.links.folder().join(&path);
            self.files += u64::from(link_if_there(&self.data, &[path], &link)?);
        }
        Ok(())
    }
}

/// Where a file of the table may be.
fn paths(stem: &str, extension: &str) -> Vec<String> {
    ["parts", "removed"].map(|folder| format!("{folder}/{stem}.{extension}")).into()
}
