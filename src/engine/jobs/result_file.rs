//! Reading the results of jobs.

use std::{io, sync::Arc};

use bytes::Bytes;

use super::{
    record::RecordState,
    record_changes::{change_record, read_record},
};
use crate::{
    engine::{
        runtime::{context::Context, workers::Workers},
        state::{
            Lane,
            jobs::{Entry, JobId, JobState},
        },
        storage::{
            names::JobFile,
            reader::{Blocks, Reader},
        },
    },
    error::{Error, jobs::JobError},
};

/// A result, open for reading.
pub struct ResultFile {
    file: Reader,
    /// What was read last. `None` if nothing is kept, and after an error.
    blocks: Option<Blocks>,
    workers: Workers,
}

impl ResultFile {
    /// The result's size.
    pub fn bytes(&self) -> u64 {
        self.file.bytes()
    }

    /// Reads `bytes_max` bytes from `offset` on, or fewer at the end of the result. With `reads_on`, reading on
    /// from there reads no block twice; otherwise nothing else than these bytes is kept in memory.
    pub async fn read(&mut self, offset: u64, bytes_max: usize, reads_on: bool) -> Result<Bytes, Error> {
        let mut blocks = self.blocks.take().unwrap_or_else(|| self.file.blocks());
        let read = move || Ok((blocks.read(offset, bytes_max)?, reads_on.then_some(blocks)));
        let (found, blocks) = self.workers.run(Lane::Question, read).await.flatten()?;
        self.blocks = blocks;
        Ok(found.into())
    }
}

/// Opens the result of a job that is done.
pub(crate) async fn open_result(context: &Arc<Context>, id: JobId) -> Result<ResultFile, Error> {
    let gone = || JobError::NotFound { id: id.to_string() };
    let result = |entry: &Entry| Some((entry.result_bytes?, entry.result_check));
    let Some((bytes, check)) = context.state.with(|state| result(state.jobs.entries.get(&id)?)) else {
        return Err(gone().into());
    };
    let store = Arc::clone(&context.store);
    let open = move || store.open_job_file(&id.to_string(), JobFile::Result, check);
    match context.workers.run(Lane::Question, open).await.flatten() {
        Ok(file) if file.bytes() != bytes => {
            let what = format!("its result has {} bytes, its record says {bytes}", file.bytes());
            Err(JobError::Damaged { name: id.to_string(), what }.into())
        }
        Ok(file) => Ok(ResultFile { file, blocks: None, workers: context.workers.clone() }),
        Err(Error::Io { cause, .. }) if cause.kind() == io::ErrorKind::NotFound => Err(gone().into()),
        Err(error) => Err(error),
    }
}

/// Notes that a result was fetched completely. A later sweep removes it.
pub(crate) async fn mark_downloaded(context: Arc<Context>, id: JobId) -> Result<(), Error> {
    if !context.state.with(|state| state.jobs.begin_write(id, |state| matches!(state, JobState::Done { .. }))) {
        return Ok(()); // another call has already fetched it, or it was removed
    }
    let marked = async {
        let mut record = read_record(&context, id).await?;
        change_record(&context, &mut record, RecordState::Downloaded, None).await
    };
    let marked = marked.await;
    if marked.is_err() {
        context.state.with(|state| state.jobs.end_write(id));
    }
    marked
}
