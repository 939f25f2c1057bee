//! Reads a complete draft and converts it by the path for integers.

use tokio::sync::OwnedSemaphorePermit;

use super::{convert::unless_unsuited, integers::Integers};
use crate::{
    engine::{
        parquet::writer::Converted,
        storage::{Store, reader::Reader},
    },
    error::Error,
    limits::{CONVERT_TASK_BYTES, CsvLimits, RECEIVE_BLOCK_BYTES},
};

/// The outcome of one task of a longer piece of work.
pub(super) enum Step<M, T> {
    /// There is more to do, by another task.
    More(M),
    /// The result.
    Done(T),
}

/// A draft that is being converted by [`Integers`].
pub(super) struct Reread {
    pub(super) file: Reader,
    pub(super) offset: u64,
    pub(super) integers: Option<Integers>,
    /// Kept here because a task may still run after its upload was cancelled.
    pub(super) _reservation: OwnedSemaphorePermit,
}

impl Reread {
    /// Converts the next `CONVERT_TASK_BYTES`. Done with `None` if this path cannot convert the file.
    pub(super) fn step(mut self, store: &Store, limits: CsvLimits) -> Result<Step<Self, Option<Converted>>, Error> {
        let stop = self.file.bytes().min(self.offset + CONVERT_TASK_BYTES as u64);
        while self.offset < stop {
            let block = self.file.block(self.offset, RECEIVE_BLOCK_BYTES)?;
            self.offset += block.len() as u64;
            let parsed = match self.integers.take() {
                None => Integers::begin(store, limits, &block),
                Some(mut integers) => integers.push(&block).map(|()| integers),
            };
            self.integers = unless_unsuited(parsed)?;
            if self.integers.is_none() {
                return Ok(Step::Done(None));
            }
        }
        if self.offset < self.file.bytes() {
            return Ok(Step::More(self));
        }
        let converted = self.integers.map(|integers| unless_unsuited(integers.finish())).transpose()?;
        Ok(Step::Done(converted.flatten()))
    }
}
