//! Uploads that are not plain CSV: a stage in front of all others, after which the bytes are plain CSV. Without options there
//! is no such stage.
//!
//! Text is rewritten block by block while it arrives. A compressed file is first received into a draft and then decompressed
//! from there: so the few large decoders never wait for a client. Decompression and rewriting are tasks on workers, each of
//! which takes little input and makes little output.
//!
//! Memory: a block and its output for text; for a compressed file a reservation of [`DECODER_BYTES`] until it has been read.

use std::{
    hash::Hasher,
    sync::{Arc, OnceLock},
};

use bytes::Bytes;
use futures_util::{Stream, stream};
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use twox_hash::XxHash3_64;

use super::{
    blocks::{Block, CsvPieces, Incoming, TargetSize},
    integer_attempt::IntegerAttempt,
    receive::{receive_blocks, run_unless_cancelled},
};
use crate::{
    engine::{
        csv::{
            dialect::{Compression, Transformer},
            sniff::Foreign,
        },
        runtime::drop_on_worker::DropOnWorker,
        state::transfers::Origin,
        storage::{
            draft::checksum_text,
            reader::{Blocks, Reader},
        },
    },
    error::Error,
    limits::{
        DECODER_BYTES, DECODERS_MAX, DECOMPRESS_TASK_BYTES, LARGE_CONVERSION_BYTES, READ_BLOCK_BYTES,
        RECEIVE_BLOCK_BYTES, REWRITE_BLOCK_BYTES, REWRITE_BUFFER_BYTES, REWRITE_OUTPUT_BYTES,
    },
    model::{
        dialect::{Decompress, Dialect, Source},
        idempotency_key::IdempotencyKey,
        part::FileInfo,
    },
};

/// Decoders take their memory from that for large conversions, which keeps most of it. They never wait for a client.
const _: () = assert!(DECODERS_MAX * DECODER_BYTES <= LARGE_CONVERSION_BYTES / 4);

/// Where an upload comes from, and what its call says of it.
pub struct UploadFrom {
    /// The client.
    pub origin: Origin,
    /// A key that is used for one file only, if the head of the call names it.
    pub key: Option<IdempotencyKey>,
    /// The dialect of the file.
    pub dialect: DialectFrom,
}

impl UploadFrom {
    /// An upload of the server's own.
    pub fn server(dialect: Option<Dialect>) -> Self {
        Self { origin: Origin::SERVER, key: None, dialect: DialectFrom::Call(dialect) }
    }

    /// Whether it is known, before its body is read, that it has no key.
    pub(crate) fn has_no_key(&self) -> bool {
        self.key.is_none() && matches!(self.dialect, DialectFrom::Call(_))
    }
}

/// The options that a stream of bytes names before its first one.
#[derive(Debug)]
pub struct StreamOptions {
    /// The dialect of the file.
    pub dialect: Dialect,
    /// A key that is used for one file only.
    pub key: Option<IdempotencyKey>,
}

/// The dialect of an upload, or where it will be found.
pub enum DialectFrom {
    /// The call names it; `None` is plain CSV.
    Call(Option<Dialect>),
    /// The stream of bytes names it before it yields the first one, if at all, and perhaps a key.
    Stream(oneshot::Receiver<Result<StreamOptions, Error>>),
}

/// The file that was sent, once it has arrived.
pub(super) struct Original {
    /// `None` if the file is stored as it is.
    rewritten: Option<(Dialect, Arc<OnceLock<FileInfo>>)>,
}

impl Original {
    /// What to do with CSV that does not look like CSV with commas: a client that names the separator means it.
    pub(super) fn foreign(&self) -> Foreign {
        match &self.rewritten {
            Some((dialect, _)) if dialect.delimiter.is_some() => Foreign::Accept,
            _ => Foreign::Refuse,
        }
    }

    /// What the receipt says of it. It must have been rewritten to its end.
    pub(super) fn source(self) -> Result<Option<Box<Source>>, Error> {
        let Some((dialect, file)) = self.rewritten else { return Ok(None) };
        let file = file.get().ok_or_else(|| Error::Internal("an upload was not rewritten to its end".to_owned()))?;
        Ok(Some(Box::new(Source::new(dialect, file.bytes, file.xxh3.clone()))))
    }
}

/// The dialect and the key of an upload. `key`: the one that the head of the call names.
///
/// Errors: those of the options and of the stream; the options name another key than the head.
pub(super) async fn options<S>(
    incoming: &mut Incoming<'_, S>,
    key: Option<IdempotencyKey>,
    dialect: DialectFrom,
) -> Result<(Option<Dialect>, Option<IdempotencyKey>), Error>
where
    S: Stream<Item = Result<Bytes, Error>> + Send + Unpin,
{
    let mut rx = match dialect {
        DialectFrom::Call(dialect) => return Ok((dialect, key)),
        DialectFrom::Stream(rx) => rx,
    };
    incoming.wait_for_first().await?;
    let Some(options) = rx.try_recv().ok().transpose()? else { return Ok((None, key)) };
    if key.is_some() && options.key.is_some() && key != options.key {
        let reason = "the metadata and the options have different idempotency keys: send one of them";
        return Err(Error::Malformed(reason.to_owned()));
    }
    Ok((Some(options.dialect), key.or(options.key)))
}

/// The same upload as plain CSV.
pub(super) async fn as_csv<'a, S>(
    incoming: Incoming<'a, S>,
    dialect: Option<Dialect>,
) -> Result<(Incoming<'a, S>, Original), Error>
where
    S: Stream<Item = Result<Bytes, Error>> + Send + Unpin + 'a,
{
    let Some(dialect) = dialect.and_then(Dialect::unless_plain) else {
        return Ok((incoming, Original { rewritten: None }));
    };
    let (context, cancel, pace) = (incoming.context, incoming.cancel, incoming.pace());
    let file = Arc::new(OnceLock::new());
    let (csv, pace) = match dialect.decompress {
        None => (rewrite_text(incoming, &dialect, Arc::clone(&file))?, pace),
        Some(decompress) => (decompress_file(incoming, &dialect, decompress, &file).await?, None),
    };
    Ok((Incoming::rewritten(context, cancel, csv, pace), Original { rewritten: Some((dialect, file)) }))
}

/// Text that is rewritten while it arrives.
struct ArrivingText {
    transformer: Transformer,
    /// The last block that has arrived.
    block: Block,
    /// Bytes of it that are rewritten.
    taken: usize,
    /// Of the bytes that have arrived.
    checksum: Box<XxHash3_64>,
    bytes: u64,
    file: Arc<OnceLock<FileInfo>>,
}

fn rewrite_text<'a, S>(
    incoming: Incoming<'a, S>,
    dialect: &Dialect,
    file: Arc<OnceLock<FileInfo>>,
) -> Result<CsvPieces<'a>, Error>
where
    S: Stream<Item = Result<Bytes, Error>> + Send + Unpin + 'a,
{
    let text = ArrivingText {
        transformer: Transformer::new(dialect, None, u64::MAX)?, // its length is checked as it arrives
        block: Block { bytes: Vec::new(), at_end: false },
        taken: 0,
        checksum: Box::default(),
        bytes: 0,
        file,
    };
    let pieces = stream::try_unfold(Some((incoming, text)), |state| async move {
        let Some((mut incoming, mut text)) = state else { return Ok(None) };
        loop {
            if text.taken == text.block.bytes.len() {
                let mut spare = std::mem::take(&mut text.block.bytes);
                spare.clear();
                text.block = incoming.next_block(&TargetSize::new(REWRITE_BLOCK_BYTES), spare).await?;
                text.taken = 0;
            }
            let rewritten = run_unless_cancelled(incoming.context, incoming.cancel, move || text.rewrite());
            let Rewritten { state, output } = rewritten.await?;
            match state {
                Some(more) if output.is_empty() => text = more,
                more => return Ok(Some((Bytes::from(output), more.map(|text| (incoming, text))))),
            }
        }
    });
    Ok(Box::pin(pieces))
}

/// What a task has made.
struct Rewritten<T> {
    /// What is left to do; `None` at the end of the file.
    state: Option<T>,
    output: Vec<u8>,
}

impl ArrivingText {
    /// Rewrites bytes of the block until there is enough output.
    fn rewrite(mut self) -> Result<Rewritten<Self>, Error> {
        if self.taken == 0 {
            self.checksum.write(&self.block.bytes);
            self.bytes += self.block.bytes.len() as u64;
        }
        let mut output = Vec::with_capacity(REWRITE_BUFFER_BYTES);
        let mut rest = &self.block.bytes[self.taken..];
        while !rest.is_empty() && output.len() < REWRITE_OUTPUT_BYTES {
            self.transformer.step(&mut rest, &mut output)?;
        }
        self.taken = self.block.bytes.len() - rest.len();
        let is_whole = self.block.at_end && rest.is_empty();
        if is_whole {
            self.transformer.finish(&mut output)?;
            let info = FileInfo { bytes: self.bytes, xxh3: checksum_text(&self.checksum) };
            self.file.get_or_init(|| info);
        }
        Ok(Rewritten { state: (!is_whole).then_some(self), output })
    }
}

/// A received file that is decompressed and rewritten.
struct StoredFile {
    transformer: Transformer,
    blocks: Blocks,
    offset: u64,
    _memory: Option<DecoderMemory>,
}

/// What a decoder needs. Kept with it, because a task may still run after its upload was cancelled.
struct DecoderMemory {
    _permit: OwnedSemaphorePermit,
    _reservation: OwnedSemaphorePermit,
}

/// Receives a file whole, and decompresses it then. Sets `file`.
async fn decompress_file<'a, S>(
    mut incoming: Incoming<'a, S>,
    dialect: &Dialect,
    decompress: Decompress,
    file: &OnceLock<FileInfo>,
) -> Result<CsvPieces<'a>, Error>
where
    S: Stream<Item = Result<Bytes, Error>> + Send + Unpin + 'a,
{
    let (context, cancel) = (incoming.context, incoming.cancel);
    let first = incoming.first_block().await?;
    let compression = Compression::of(decompress, &first.bytes);
    let (mut draft, _not_tried) = receive_blocks(incoming, first, IntegerAttempt::Off).await?;
    // The file has no name from here on, so that nothing of it is left when it has been read.
    let (reader, info) = run_unless_cancelled(context, cancel, move || Ok((draft.reader()?, draft.info()))).await?;
    file.get_or_init(|| info);
    let reserve = async {
        let permit = Arc::clone(&context.decoders).acquire_owned().await.ok().ok_or(Error::Draining)?;
        let reservation = context.large_conversions.reserve(DECODER_BYTES).await?;
        Ok::<_, Error>(DecoderMemory { _permit: permit, _reservation: reservation })
    };
    let memory = match compression {
        None => None,
        Some(_) => Some(tokio::select! {
            () = cancel.cancelled() => return Err(Error::Cancelled),
            memory = reserve => memory?,
        }),
    };
    let transformer = Transformer::new(dialect, compression, context.limits.upload_bytes_max)?;
    let stored = StoredFile { transformer, blocks: Reader::blocks(&reader), offset: 0, _memory: memory };
    let stored = DropOnWorker { value: Some(stored), workers: context.workers.clone() };
    Ok(Box::pin(stream::try_unfold(Some(stored), move |state| async move {
        let Some(mut stored) = state else { return Ok(None) };
        loop {
            let task = stored.take()?;
            let Rewritten { state, output } = run_unless_cancelled(context, cancel, move || task.rewrite()).await?;
            let is_whole = state.is_none();
            stored.value = state;
            if is_whole || !output.is_empty() {
                return Ok(Some((Bytes::from(output), (!is_whole).then_some(stored))));
            }
        }
    })))
}

impl StoredFile {
    /// Rewrites bytes of the file until there is enough output, or enough was done for one task.
    fn rewrite(mut self) -> Result<Rewritten<Self>, Error> {
        let mut output = Vec::new();
        let offset_max = self.offset + READ_BLOCK_BYTES as u64;
        let plain_max = self.transformer.plain_bytes() + DECOMPRESS_TASK_BYTES as u64;
        while output.len() < RECEIVE_BLOCK_BYTES
            && self.offset < offset_max
            && self.transformer.plain_bytes() < plain_max
        {
            let block = self.blocks.from(self.offset)?;
            if block.is_empty() {
                self.transformer.finish(&mut output)?;
                return Ok(Rewritten { state: None, output });
            }
            let mut rest = block;
            self.transformer.step(&mut rest, &mut output)?;
            self.offset += (block.len() - rest.len()) as u64;
        }
        Ok(Rewritten { state: Some(self), output })
    }
}
