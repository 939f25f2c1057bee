//! Small files: what is in memory with its first block is typed, converted and put in place by one worker in one slice.
//!
//! Those that come at about the same time go to a worker together, one after the other. To create a file is to hold its
//! folder's lock in the kernel, so workers that create one each stand in each other's way, and every slice wakes a
//! thread: with 16 clients a batch takes less time than the same files apart.
//!
//! Memory: a file brings a claim for all that is done to it.

use std::{io::Write, sync::Arc};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::{
    claims::{Plan, typing_bytes},
    convert::Typer,
    csv::{Resume, Scanner, Wanted, header_of},
    integers::Integers,
    state::{Lane, Shared},
    store::Store,
    upload::{CONVERT_SLICE_BYTES, Conversion, Converted, StagedPart, stage, unless_unsuited},
    workers::{Workers, caught},
};
use crate::{
    error::Error,
    limits::{COLUMNS_MAX, CsvLimits, DRAFT_BYTES_HELD},
};

/// Files that a slice takes: no more bytes than any other has.
const BATCH_MAX: usize = CONVERT_SLICE_BYTES / DRAFT_BYTES_HELD;
/// Batches under way: while one is in the folder, the other is typed.
const BATCHES_MAX: usize = 2;

/// Where small files go, one for each upload that is under way.
pub type SmallFiles = mpsc::Sender<SmallFile>;

/// A file on its way to a worker, and who is told what came of it.
pub struct SmallFile {
    csv: Vec<u8>,
    claim: OwnedSemaphorePermit,
    told: oneshot::Sender<Result<StagedPart, Error>>,
}

impl SmallFile {
    /// Memory that the file may take until it is in place.
    ///
    /// Errors: it is too wide to be converted.
    pub fn claim_bytes(csv: &[u8], limits: CsvLimits) -> Result<usize, Error> {
        let columns = columns_max(csv);
        let plan = Plan::for_file(csv.len() as u64, columns, csv.len())?;
        Ok(plan.claim_bytes + typing_bytes(csv.len() as u64, columns, limits))
    }

    /// A file, with its claim, and what will come of it.
    pub fn new(csv: Vec<u8>, claim: OwnedSemaphorePermit) -> (Self, oneshot::Receiver<Result<StagedPart, Error>>) {
        let (told, hears) = oneshot::channel();
        (Self { csv, claim, told }, hears)
    }
}

/// Where small files become staged parts.
pub struct Stage {
    /// Who does it.
    pub workers: Workers,
    /// Where the files go.
    pub store: Arc<Store>,
    /// Where they get their ids.
    pub state: Shared,
    /// What a file may have.
    pub limits: CsvLimits,
}

impl Stage {
    /// Stages what comes until nobody is left who could bring more.
    pub async fn keep_staging(self, mut files: mpsc::Receiver<SmallFile>) {
        let this = Arc::new(self);
        let turns = Arc::new(Semaphore::new(BATCHES_MAX));
        while let Ok(turn) = Arc::clone(&turns).acquire_owned().await {
            let mut batch = Vec::with_capacity(BATCH_MAX);
            if files.recv_many(&mut batch, BATCH_MAX).await == 0 {
                return;
            }
            let stage = Arc::clone(&this);
            let work = move || {
                let _turn = turn;
                batch.into_iter().for_each(|file| stage.stage_one(file));
            };
            if this.workers.hand_over(Lane::Upload, work).await.is_err() {
                return; // who waits for its file learns that its end is gone
            }
        }
    }

    /// Types, converts and stages a file, unless nobody wants it any more. A panic is the error of this one alone.
    fn stage_one(&self, file: SmallFile) {
        let SmallFile { csv, claim, told } = file;
        if told.is_closed() {
            return;
        }
        let staged = caught(|| {
            let converted = match unless_unsuited(Integers::of_file(&self.store, self.limits, &csv))? {
                Some(converted) => converted,
                None => convert(&self.store, self.limits, &csv)?,
            };
            drop(claim);
            let mut draft = self.store.draft()?;
            draft.write_all(&csv).map_err(Error::io("an upload's spool file"))?;
            stage(&self.store, &self.state, draft, converted)
        });
        // If nobody hears it, it is dropped here, on a worker.
        let _unheard = told.send(staged.flatten());
    }
}

/// Types and converts a file that is in memory.
fn convert(store: &Arc<Store>, limits: CsvLimits, csv: &[u8]) -> Result<Converted, Error> {
    let new_scanner = || Scanner::new(limits, Wanted::All, Resume::default());
    let (mut scanner, mut typer) = (new_scanner(), Typer::default());
    scanner.feed(csv, &mut typer)?;
    scanner.finish(&mut typer)?;
    let (rows, columns) = (scanner.into_resume().rows, typer.into_columns());
    let layout = Plan::for_file(csv.len() as u64, columns.len(), csv.len())?.layout;
    let mut conversion = Conversion::new(store, columns, layout);
    let mut scanner = new_scanner();
    scanner.feed(csv, &mut conversion)?;
    scanner.finish(&mut conversion)?;
    conversion.finish(rows)
}

/// Columns that a file in memory can have: more than it has only if commas stand in their names.
fn columns_max(csv: &[u8]) -> usize {
    (memchr::memchr_iter(b',', header_of(csv)).count() + 1).min(COLUMNS_MAX)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures_util::{future::join_all, stream};

    use super::*;
    use crate::{
        engine::{Durability, Engine, part::Format},
        limits::Limits,
    };

    #[tokio::test]
    async fn a_bad_file_is_refused_alone_among_others() {
        for durability in [Durability::None, Durability::Fsync] {
            let folder = tempfile::TempDir::new().expect("a folder");
            let opened = Engine::open(folder.path(), durability, Limits::default()).await;
            let (engine, _) = opened.expect("a data folder");
            let uploads = join_all((0..100).map(|number| {
                let csv = match number % 4 {
                    0 => format!("a,b\n{number},1\n2\n"),
                    1 => format!("a,b\n{number},text\n"),
                    _ => format!("a,b\n{number},1\n"),
                };
                let engine = engine.clone();
                async move { engine.upload(stream::iter([Ok::<_, Error>(Bytes::from(csv))])).await }
            }));
            let mut kept = 0;
            for (number, uploaded) in uploads.await.into_iter().enumerate() {
                match (number % 4, uploaded) {
                    (0, Err(error)) => assert_eq!(error.to_string(), "row 2 has 1 cell, the header has 2"),
                    (0, Ok(_)) => panic!("file {number} has a short row"),
                    (_, uploaded) => kept += uploaded.expect("it is right").rows,
                }
            }
            assert_eq!((kept, engine.parts_count()), (75, 75));
            let expected: i64 = (0..100).filter(|number| number % 4 != 0).sum();
            for format in [Format::Csv, Format::Parquet] {
                assert_eq!(engine.column_sum("a", format).await.expect("integers").total, expected);
            }
            let left = std::fs::read_dir(folder.path().join("tmp")).expect("a folder").count();
            assert_eq!(left, 0, "nothing is left of those that were refused");
            engine.close();
        }
    }

    #[test]
    fn no_small_file_has_more_columns_than_it_claims_memory_for() {
        for (csv, columns) in [
            ("a", 1),
            ("a,b\n1,2\n", 2),
            ("\n\r\n\ra,b,c\r1,2,3\n", 3),
            ("\u{feff}\r\na,b\n1,2\n", 2),
            ("\"a\",\"b\n,\"\n1,2,3,4,5\n", 3),
            ("", 1),
        ] {
            assert_eq!(columns_max(csv.as_bytes()), columns, "{csv:?}");
        }
        assert_eq!(columns_max(&[b','; 2 * COLUMNS_MAX]), COLUMNS_MAX);
    }
}
