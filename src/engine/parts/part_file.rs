//! The files of a part, as they are, piece by piece: for downloads. Every byte is verified before it is returned.
//!
//! Memory: a block of the file, and while a worker reads Parquet the file's footer.

use std::sync::Arc;

use bytes::Bytes;

use super::listing::find_verifiable;
use crate::{
    engine::{
        parquet::{file::verified_bytes, wide::is_wide},
        runtime::context::Context,
        state::Lane,
        storage::reader::Reader,
    },
    error::Error,
    model::{
        format::Format,
        part::{Part, PartId},
    },
};

/// A file of a part, open for reading. It is not deleted while this is here.
pub struct PartFile {
    context: Arc<Context>,
    part: Arc<Part>,
    format: Format,
    file: Reader,
    xxh3: String,
}

/// Opens a file of a part.
///
/// Errors: there is no such part; its receipt or its file is damaged or cannot be read.
pub(crate) async fn open_part_file(context: &Arc<Context>, id: PartId, format: Format) -> Result<PartFile, Error> {
    let part = find_verifiable(context, id).await?;
    let of = Arc::clone(&part);
    let open = context.on_worker(Lane::Question, move |store| {
        let receipt = store.receipt_of(&of)?;
        let info = match format {
            Format::Csv => receipt.csv,
            Format::Parquet => receipt.parquet,
        };
        Ok((store.open_part(&of, format)?, info.xxh3))
    });
    let (file, xxh3) = open.await?;
    Ok(PartFile { context: Arc::clone(context), part, format, file, xxh3 })
}

impl PartFile {
    /// The file's size.
    pub fn bytes(&self) -> u64 {
        self.file.bytes()
    }

    /// The file's checksum: 16 hexadecimal digits.
    pub fn xxh3(&self) -> &str {
        &self.xxh3
    }

    /// Reads bytes from `offset` on: at most `bytes_max`, and at least one unless the file ends there.
    ///
    /// Errors: they are not what was written, or cannot be read.
    pub async fn read(&self, offset: u64, bytes_max: usize) -> Result<Bytes, Error> {
        let (context, file) = (&self.context, self.file.clone());
        if self.format == Format::Csv {
            let read = move || file.block(offset, bytes_max);
            return context.workers.run(Lane::Question, read).await.flatten().map(Bytes::from);
        }
        let wide = match is_wide(&self.part) {
            true => Some(Arc::clone(&context.wide_reads).acquire_owned().await.ok().ok_or(Error::Draining)?),
            false => None,
        };
        let part = Arc::clone(&self.part);
        let read = move || {
            let _wide = wide; // until the footer is dropped
            verified_bytes(&file, &part, offset, bytes_max)
        };
        context.workers.run(Lane::Question, read).await.flatten()
    }
}
