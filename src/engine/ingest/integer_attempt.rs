//! The attempt to convert an upload to Parquet while it arrives. It continues while every cell is an integer and there is
//! memory for it; otherwise the file is converted from its draft once it is complete.

use std::{sync::Arc, time::Duration};

use tokio::sync::OwnedSemaphorePermit;

use super::{
    convert::unless_unsuited,
    integers::{self, Integers},
};
use crate::{
    engine::{
        parquet::writer::Converted,
        runtime::context::Context,
        storage::{Store, draft::SyncHandle},
    },
    error::Error,
    limits::{CsvLimits, READ_AHEAD_BLOCK_BYTES},
};

/// How long a client may take to send a block before the attempt ends, so that other uploads can use its memory.
pub(super) const ATTEMPT_IDLE_MAX: Duration = Duration::from_secs(1);

/// The state of the attempt on one upload.
pub(super) enum IntegerAttempt {
    /// There is no attempt, or it was ended to free its memory. The file may still have only integers.
    Off,
    /// The fast path cannot convert the file.
    Failed,
    /// Memory is reserved, and no block has been parsed yet.
    Ready(Reservations),
    /// Every cell so far is an integer.
    Converting(Box<Integers>, Reservations),
}

/// The result of the attempt when the upload is complete.
pub(super) enum AttemptResult {
    Converted(Converted),
    /// The fast path cannot convert the file.
    Failed,
    /// The file was not parsed to its end, so it may still have only integers.
    NotTried,
}

/// The memory that the attempt may use.
pub(super) struct Reservations {
    _integers: OwnedSemaphorePermit,
    /// For the block that is being parsed and the next one. The second may exist for longer than the attempt.
    blocks: Arc<OwnedSemaphorePermit>,
}

impl IntegerAttempt {
    /// Begins an attempt if its memory is free now. An upload never waits for this memory while its client sends.
    pub(super) fn begin(context: &Arc<Context>) -> Self {
        let reserve = || {
            let integers = context.large_conversions.try_reserve(integers::MEMORY_BYTES)?;
            let blocks = context.large_conversions.try_reserve(2 * READ_AHEAD_BLOCK_BYTES)?;
            Some(Reservations { _integers: integers, blocks: Arc::new(blocks) })
        };
        reserve().map_or(Self::Off, Self::Ready)
    }

    /// The reservation for reading a block ahead, if the attempt is active.
    pub(super) fn blocks_reservation(&self) -> Option<Arc<OwnedSemaphorePermit>> {
        match self {
            Self::Off | Self::Failed => None,
            Self::Ready(memory) | Self::Converting(_, memory) => Some(Arc::clone(&memory.blocks)),
        }
    }

    /// Parses the next block of the file.
    pub(super) fn push(self, store: &Store, limits: CsvLimits, block: &[u8]) -> Result<Self, Error> {
        let (parsed, memory) = match self {
            Self::Off | Self::Failed => return Ok(self),
            Self::Ready(memory) => (Integers::begin(store, limits, block), memory),
            Self::Converting(mut integers, memory) => (integers.push(block).map(|()| *integers), memory),
        };
        Ok(unless_unsuited(parsed)?.map_or(Self::Failed, |integers| Self::Converting(Box::new(integers), memory)))
    }

    /// Whether the attempt has not ended and keeps its reservations.
    pub(super) fn is_active(&self) -> bool {
        matches!(self, Self::Ready(_) | Self::Converting(..))
    }

    /// The part of the Parquet file that is written, to be synced.
    pub(super) fn partial_file(&self) -> Option<SyncHandle> {
        match self {
            Self::Off | Self::Failed | Self::Ready(_) => None,
            Self::Converting(integers, _) => integers.partial_file(),
        }
    }

    /// The result, once the last block was pushed.
    pub(super) fn finish(self) -> Result<AttemptResult, Error> {
        match self {
            Self::Off | Self::Ready(_) => Ok(AttemptResult::NotTried),
            Self::Failed => Ok(AttemptResult::Failed),
            Self::Converting(integers, _memory) => {
                Ok(unless_unsuited(integers.finish())?.map_or(AttemptResult::Failed, AttemptResult::Converted))
            }
        }
    }
}
