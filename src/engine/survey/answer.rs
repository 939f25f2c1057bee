//! The answer to a question, as JSON.

use std::sync::Arc;

use serde::{Serialize, Serializer};
use tokio::sync::OwnedSemaphorePermit;

/// The answer, which serialises as JSON in a fixed order. It owns the reservation of its memory.
#[derive(Debug)]
pub struct Answer {
    pub(super) means: Vec<(String, f64)>,
    /// The key that the means are nested under, if they are the categories of one state.
    pub(super) state: Option<String>,
    pub(super) _memory: Memory,
}

/// The reservation that covers all memory of one question. `None` on another machine, which has no server's memory to share.
pub(super) type Memory = Option<Arc<OwnedSemaphorePermit>>;

impl Serialize for Answer {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let means = Means(&self.means);
        match &self.state {
            Some(state) => serializer.collect_map([(state, means)]),
            None => means.serialize(serializer),
        }
    }
}

/// Serialises as a map in the order of the list.
struct Means<'a>(&'a [(String, f64)]);

impl Serialize for Means<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, mean)| (name, mean)))
    }
}
