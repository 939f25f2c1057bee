//! Parts, answers and questions as rows and bytes. Both sides are the same program: Ballista refuses others by their version.

pub mod answers;
pub mod parts;
pub mod question;

use datafusion::{
    arrow::{
        array::{ArrayRef, AsArray, PrimitiveArray, RecordBatch},
        datatypes::{ArrowPrimitiveType, UInt8Type, UInt64Type},
    },
    error::{DataFusionError, Result},
};

/// The error for a message that this program did not write.
pub(crate) fn malformed(what: impl Into<String>) -> DataFusionError {
    DataFusionError::Internal(format!("a malformed message: {}", what.into()))
}

fn column<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a ArrayRef> {
    batch.column_by_name(name).filter(|column| column.null_count() == 0).ok_or_else(|| malformed(name))
}

fn numbers<'a, T: ArrowPrimitiveType>(batch: &'a RecordBatch, name: &str) -> Result<&'a PrimitiveArray<T>> {
    column(batch, name)?.as_primitive_opt::<T>().ok_or_else(|| malformed(name))
}

fn u64s<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a PrimitiveArray<UInt64Type>> {
    numbers(batch, name)
}

fn u8s<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a PrimitiveArray<UInt8Type>> {
    numbers(batch, name)
}
