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
    On(BetClaim),
    /// So far it is one.
    Good(Box<Integers>, BetClaim),
}

/// What came of a bet.
pub(super) enum Outcome {
    Won(Converted),
    Lost,
    /// Nobody knows.
    Open,
}

/// On the memory that a bet takes.
pub(super) struct BetClaim {
    _integers: OwnedSemaphorePermit,
    /// For a block that is worked on and the one that comes, which may be there longer than the bet.
    blocks: Arc<OwnedSemaphorePermit>,
}

impl Bet {
    /// None if there is no memory for it now: an upload never waits for a place to be worked on while it comes.
    pub(super) fn on_integers(context: &Arc<Context>) -> Self {
        let claim = || {
            let integers = context.large_conversions.try_claim(integers::CLAIM_BYTES)?;
            let blocks = context.large_conversions.try_claim(2 * READ_AHEAD_BLOCK_BYTES)?;
            Some(BetClaim { _integers: integers, blocks: Arc::new(blocks) })
        };
        claim().map_or(Self::Off, Self::On)
    }

    pub(super) fn blocks_claim(&self) -> Option<Arc<OwnedSemaphorePermit>> {
        match self {
            Self::Off | Self::Lost => None,
            Self::On(claim) | Self::Good(_, claim) => Some(Arc::clone(&claim.blocks)),
        }
    }

    pub(super) fn see(self, store: &Store, limits: CsvLimits, block: &[u8]) -> Result<Self, Error> {
        let (seen, claim) = match self {
            Self::Off | Self::Lost => return Ok(self),
            Self::On(claim) => (Integers::begin(store, limits, block), claim),
            Self::Good(mut integers, claim) => (integers.see(block).map(|()| *integers), claim),
        };
        Ok(unless_unsuited(seen)?.map_or(Self::Lost, |integers| Self::Good(Box::new(integers), claim)))
    }

    /// Whether it holds a claim.
    pub(super) fn is_on(&self) -> bool {
        matches!(self, Self::On(_) | Self::Good(..))
    }

    /// What is written of the Parquet file.
    pub(super) fn so_far(&self) -> Option<SoFar> {
        match self {
            Self::Off | Self::Lost | Self::On(_) => None,
            Self::Good(integers, _claim) => integers.so_far(),
        }
    }

    pub(super) fn finish(self) -> Result<Outcome, Error> {
        match self {
            Self::Off | Self::On(_) => Ok(Outcome::Open),
            Self::Lost => Ok(Outcome::Lost),
            Self::Good(integers, _claim) => Ok(unless_unsuited(integers.finish())?.map_or(Outcome::Lost, Outcome::Won)),
        }
    }
}
