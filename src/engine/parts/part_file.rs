//! The files of a part, as they are, piece by piece: for downloads. Every byte is verified before it is returned.
//!
//! Memory: a block of the file, and of Parquet the checksums of the next ones; while these are read, the file's footer.

use std::sync::Arc;

use bytes::Bytes;

use crate::{
    engine::{
        parquet::{verified_bytes::VerifiedBytes, wide::is_wide},
        runtime::{context::Context, drop_on_worker::DropOnWorker},
        state::Lane,
        storage::{
            Store,
            draft::Draft,
            reader::{Blocks, Reader},
        },
    },
    error::Error,
    model::{format::Format, part::Part},
};

/// A file of a part, open for reading. It is not deleted while this is here.
pub struct PartFile {
    context: Arc<Context>,
    part: Arc<Part>,
    format: Format,
    file: Reader,
    /// What was read last. `None` if nothing is kept, and after an error.
    content: Option<Content>,
    xxh3: String,
    /// The file, if it was made for this download.
    made: Option<DropOnWorker<Draft>>,
}

/// The bytes of the file, read in their order.
enum Content {
    Blocks(Blocks),
    Parquet(VerifiedBytes),
}

/// Opens a file of a part.
///
/// Errors: its receipt or its file is damaged or cannot be read.
pub(crate) async fn open_part_file(context: &Arc<Context>, part: Arc<Part>, format: Format) -> Result<PartFile, Error> {
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
    Ok(PartFile { context: Arc::clone(context), part, format, file, content: None, xxh3, made: None })
}

impl PartFile {
    /// The Parquet file of a part that is in a segment, made for one download.
    ///
    /// Errors: it cannot be read.
    pub(crate) async fn made(context: &Arc<Context>, part: Arc<Part>, mut draft: Draft) -> Result<Self, Error> {
        let xxh3 = draft.info().xxh3;
        let open = move |_store: &Arc<Store>| {
            let file = draft.reader()?;
            Ok((file, draft))
        };
        let (file, draft) = context.on_worker(Lane::Question, open).await?;
        let made = Some(DropOnWorker { value: Some(draft), workers: context.workers.clone() });
        Ok(Self { context: Arc::clone(context), part, format: Format::Parquet, file, content: None, xxh3, made })
    }

    /// The file's size.
    pub fn bytes(&self) -> u64 {
        self.file.bytes()
    }

    /// The file's checksum: 16 hexadecimal digits.
    pub fn xxh3(&self) -> &str {
        &self.xxh3
    }

    /// Reads bytes from `offset` on: at most `bytes_max`, and at least one unless the file ends there. With `reads_on`,
    /// reading on from there reads no block twice; otherwise nothing else than these bytes is kept in memory.
    ///
    /// Errors: they are not what was written, or cannot be read.
    pub async fn read(&mut self, offset: u64, bytes_max: usize, reads_on: bool) -> Result<Bytes, Error> {
        let (context, file, part) = (&self.context, self.file.clone(), Arc::clone(&self.part));
        let mut content = self.content.take().unwrap_or_else(|| match self.format {
            Format::Parquet if self.made.is_none() => Content::Parquet(VerifiedBytes::default()),
            Format::Csv | Format::Parquet => Content::Blocks(file.blocks()),
        });
        let wide = match &content {
            Content::Parquet(bytes) if is_wide(&part) && !bytes.covers(offset) => {
                Some(Arc::clone(&context.wide_reads).acquire_owned().await.ok().ok_or(Error::Draining)?)
            }
            _ => None,
        };
        let read = move || {
            let _wide = wide; // until the footer is dropped
            let found = match &mut content {
                Content::Blocks(blocks) => blocks.read(offset, bytes_max)?.into(),
                Content::Parquet(bytes) => bytes.read(&file, &part, offset, bytes_max)?,
            };
            Ok((found, reads_on.then_some(content)))
        };
        let (found, content) = context.workers.run(Lane::Question, read).await.flatten()?;
        self.content = content;
        Ok(found)
    }
}
