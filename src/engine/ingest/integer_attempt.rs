//! The attempt to convert an upload while it arrives: it holds as long as every cell is an integer.

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
        storage::{Store, draft::SoFar},
    },
    error::Error,
    limits::{CsvLimits, READ_AHEAD_BLOCK_BYTES},
};

/// How long a block may be on its way before the memory of a bet on the file goes to others.
pub(super) const BET_IDLE_MAX: Duration = Duration::from_secs(1);

/// The hope that a file is all integers, so that it can be converted while it comes.
pub(super) enum Bet {
    /// There is none, for want of memory.
    Off,
    /// It is none, or may be none.
    Lost,
    /// Memory for it is there, and nothing was seen.
    On(Reservations),
    /// So far it is one.
    Good(Box<Integers>, Reservations),
}

/// What came of a bet.
pub(super) enum Outcome {
    Won(Converted),
    Lost,
    /// Nobody knows.
    Open,
}

/// On the memory that a bet takes.
pub(super) struct Reservations {
    _integers: OwnedSemaphorePermit,
    /// For a block that is worked on and the one that comes, which may be there longer than the bet.
    blocks: Arc<OwnedSemaphorePermit>,
}

impl Bet {
    /// None if there is no memory for it now: an upload never waits for a place to be worked on while it comes.
    pub(super) fn on_integers(context: &Arc<Context>) -> Self {
        let reserve = || {
            let integers = context.large_conversions.try_reserve(integers::MEMORY_BYTES)?;
            let blocks = context.large_conversions.try_reserve(2 * READ_AHEAD_BLOCK_BYTES)?;
            Some(Reservations { _integers: integers, blocks: Arc::new(blocks) })
        };
        reserve().map_or(Self::Off, Self::On)
    }

    pub(super) fn blocks_reservation(&self) -> Option<Arc<OwnedSemaphorePermit>> {
        match self {
            Self::Off | Self::Lost => None,
            Self::On(memory) | Self::Good(_, memory) => Some(Arc::clone(&memory.blocks)),
        }
    }

    pub(super) fn see(self, store: &Store, limits: CsvLimits, block: &[u8]) -> Result<Self, Error> {
        let (seen, memory) = match self {
            Self::Off | Self::Lost => return Ok(self),
            Self::On(memory) => (Integers::begin(store, limits, block), memory),
            Self::Good(mut integers, memory) => (integers.see(block).map(|()| *integers), memory),
        };
        Ok(unless_unsuited(seen)?.map_or(Self::Lost, |integers| Self::Good(Box::new(integers), memory)))
    }

    /// Whether it holds a reservation.
    pub(super) fn is_on(&self) -> bool {
        matches!(self, Self::On(_) | Self::Good(..))
    }

    /// What is written of the Parquet file.
    pub(super) fn so_far(&self) -> Option<SoFar> {
        match self {
            Self::Off | Self::Lost | Self::On(_) => None,
            Self::Good(integers, _reservation) => integers.so_far(),
        }
    }

    pub(super) fn finish(self) -> Result<Outcome, Error> {
        match self {
            Self::Off | Self::On(_) => Ok(Outcome::Open),
            Self::Lost => Ok(Outcome::Lost),
            Self::Good(integers, _reservation) => {
                Ok(unless_unsuited(integers.finish())?.map_or(Outcome::Lost, Outcome::Won))
            }
        }
    }
}
