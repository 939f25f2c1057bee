//! Reading a received draft again: to type it, or to convert it.

use tokio::sync::OwnedSemaphorePermit;

use super::{convert::unless_unsuited, integers::Integers};
use crate::{
    engine::{
        parquet::writer::Converted,
        storage::{Store, reader::Reader},
    },
    error::Error,
    limits::{CONVERT_SLICE_BYTES, CsvLimits, RECEIVE_BLOCK_BYTES},
};

/// What a slice leaves.
pub(super) enum Step<M, T> {
    More(M),
    Done(T),
}

/// A draft on its way through [`Integers`].
pub(super) struct Reread {
    pub(super) file: Reader,
    pub(super) offset: u64,
    pub(super) integers: Option<Integers>,
    /// Travels with the work: a cancelled upload's slice may still be running.
    pub(super) _reservation: OwnedSemaphorePermit,
}

impl Reread {
    /// Reads on for about a slice. Done with none: it is no file of integers, or may be none.
    pub(super) fn step(mut self, store: &Store, limits: CsvLimits) -> Result<Step<Self, Option<Converted>>, Error> {
        let stop = self.file.bytes().min(self.offset + CONVERT_SLICE_BYTES as u64);
        while self.offset < stop {
            let block = self.file.block(self.offset, RECEIVE_BLOCK_BYTES)?;
            self.offset += block.len() as u64;
            let seen = match self.integers.take() {
                None => Integers::begin(store, limits, &block),
                Some(mut integers) => integers.see(&block).map(|()| integers),
            };
            self.integers = unless_unsuited(seen)?;
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
