//! Whether an acknowledged upload survives a power failure.

/// Whether an acknowledged upload survives a power failure, or only the end of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Files and folders are synced before the upload is answered.
    Fsync,
    /// Nothing is synced; the operating system writes the data later.
    None,
}
