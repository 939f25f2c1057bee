//! What an acknowledged upload survives.

/// Whether an acknowledged upload survives a power failure, or only the end of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Files and folder are synced before the answer.
    Fsync,
    /// The operating system writes when it likes.
    None,
}
