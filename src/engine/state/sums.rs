//! The column sums that are being computed, so that calls which ask for the same sum of the same parts share one: a plain
//! table under the lock. `query/shared_sum.rs` computes them.

use std::sync::Arc;

use tokio::sync::watch;

use super::registry::Snapshot;
use crate::{
    limits::{SHARED_SUM_BYTES, SHARED_SUMS_MAX},
    model::{column_sum::ColumnSum, format::Format},
};

/// The sums that calls may join.
#[derive(Default)]
pub struct Sums {
    running: Vec<Running>,
    next: u64,
}

/// A sum that is being computed.
pub struct Running {
    number: u64,
    column: Arc<str>,
    format: Format,
    parts: Snapshot,
    answer: watch::Receiver<Option<Shared>>,
}

/// What the call that computes a sum tells those who wait for it.
#[derive(Clone, Copy)]
pub enum Shared {
    /// The sum.
    Sum(ColumnSum),
    /// There is none, for a reason that cannot be copied.
    Failed,
}

/// An entry of a list that is doubled when it is full, and a channel, whose size is not known: eight lists of those who wait.
const _: () = assert!(2 * size_of::<Running>() + 512 <= SHARED_SUM_BYTES);

/// How a call gets its sum.
pub enum Joined {
    /// It computes it, and sends it to those who wait for it.
    Computes(u64, watch::Sender<Option<Shared>>),
    /// It waits for the call that computes it. If the sender is dropped without an answer, that call was cancelled.
    Waits(watch::Receiver<Option<Shared>>),
    /// It computes it for itself, because as many sums are shared as may be.
    Alone,
}

impl Sums {
    /// Joins the call that computes this sum of just these parts, or makes the caller that call.
    pub fn join(&mut self, column: &Arc<str>, format: Format, parts: &Snapshot) -> Joined {
        let is_same = |sum: &&Running| sum.format == format && sum.column == *column && sum.parts.is_same(parts);
        if let Some(running) = self.running.iter().find(is_same) {
            return Joined::Waits(running.answer.clone());
        }
        if self.running.len() >= SHARED_SUMS_MAX {
            return Joined::Alone;
        }
        let (sender, answer) = watch::channel(None);
        let number = self.next;
        self.next += 1;
        self.running.push(Running { number, column: Arc::clone(column), format, parts: parts.clone(), answer });
        Joined::Computes(number, sender)
    }

    /// How many sums calls may join.
    #[cfg(test)]
    pub(crate) fn running(&self) -> usize {
        self.running.len()
    }

    /// Takes a sum out. The caller drops it without the lock, because its parts may be the last copy of a long list.
    pub fn leave(&mut self, number: u64) -> Option<Running> {
        let index = self.running.iter().position(|sum| sum.number == number)?;
        Some(self.running.swap_remove(index))
    }
}
