//! The answer to a question, as JSON.

use std::sync::Arc;

use serde::{Serialize, Serializer};
use tokio::sync::OwnedSemaphorePermit;

/// What a question is answered with: JSON in a fixed order, by its `Serialize`. While it lives, it holds the memory that
/// was reserved for it.
#[derive(Debug)]
pub struct Answer {
    pub(super) means: Vec<(String, f64)>,
    /// The state that the means are nested under, if they are by category of one state.
    pub(super) state: Option<String>,
    pub(super) _memory: Memory,
}

/// The memory reservation, shared by everything that one question keeps in memory.
pub(super) type Memory = Arc<OwnedSemaphorePermit>;

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
