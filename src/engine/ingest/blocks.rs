//! Cuts the stream of an upload into blocks for the workers.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use tokio::{
    sync::Notify,
    time::{Instant, error::Elapsed, timeout_at},
};
use tokio_util::sync::CancellationToken;

use crate::{
    engine::{
        runtime::{context::Context, transfers::Paced},
        state::transfers::Pace,
    },
    error::Error,
    limits::{DRAFT_BUFFER_BYTES, RECEIVE_BLOCK_BYTES},
};

/// Consecutive bytes of a stream.
pub(crate) struct Block {
    pub(crate) bytes: Vec<u8>,
    /// Whether this is the end of the stream.
    pub(crate) at_end: bool,
}

/// The target size of the block that is being read. It is lowered when the worker becomes idle, so that a block is about as
/// long as what arrives while the worker is busy.
pub(super) struct TargetSize {
    bytes: AtomicUsize,
    lowered: Notify,
}

impl TargetSize {
    pub(super) fn new(bytes: usize) -> Self {
        Self { bytes: AtomicUsize::new(bytes), lowered: Notify::new() }
    }

    /// Ends the wait for more than `bytes`.
    pub(super) fn lower(&self, bytes: usize) {
        self.bytes.store(bytes, Ordering::Relaxed);
        self.lowered.notify_one();
    }

    fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }
}

/// A stream that is read in blocks.
pub(crate) struct Incoming<'a, S> {
    pub(super) context: &'a Arc<Context>,
    pub(super) cancel: &'a CancellationToken,
    body: Body<'a, S>,
    /// Received bytes that are not in a block yet.
    rest: Bytes,
    /// Bytes of all blocks that were read.
    pub(super) bytes: u64,
}

impl<'a, S: Stream<Item = Result<Bytes, Error>> + Unpin> Incoming<'a, S> {
    pub(crate) fn new(context: &'a Arc<Context>, cancel: &'a CancellationToken, body: Paced<S>) -> Self {
        Self { context, cancel, body: Body::Client(body), rest: Bytes::new(), bytes: 0 }
    }

    /// Reads blocks of the CSV that a client's stream is rewritten to. `pace`: that of the client, while it sends.
    pub(super) fn rewritten(
        context: &'a Arc<Context>,
        cancel: &'a CancellationToken,
        csv: CsvPieces<'a>,
        pace: Option<Arc<Pace>>,
    ) -> Self {
        Self { context, cancel, body: Body::Rewritten { csv, pace }, rest: Bytes::new(), bytes: 0 }
    }

    /// The pace of the client.
    pub(super) fn pace(&self) -> Option<Arc<Pace>> {
        match &self.body {
            Body::Client(body) => Some(body.pace()),
            Body::Rewritten { pace, .. } => pace.clone(),
        }
    }

    /// Waits until the client has sent something, or has ended the stream. No other byte has been read.
    pub(super) async fn wait_for_first(&mut self) -> Result<(), Error> {
        let idle_deadline = Instant::now() + self.context.limits.upload_idle_max;
        let next = tokio::select! {
            () = self.cancel.cancelled() => return Err(Error::Cancelled),
            next = self.body.next(idle_deadline) => next,
        };
        self.receive(next).map(|_is_at_end| ())
    }

    /// Keeps the next piece of the stream. Returns false at its end.
    fn receive(&mut self, next: Result<Option<Result<Bytes, Error>>, Elapsed>) -> Result<bool, Error> {
        match next {
            Ok(Some(bytes)) => {
                self.rest = bytes?;
                if matches!(self.body, Body::Client(_)) {
                    self.context.received_bytes.fetch_add(self.rest.len() as u64, Ordering::Relaxed);
                }
                Ok(true)
            }
            Ok(None) => Ok(false),
            Err(_elapsed) => {
                let seconds = self.context.limits.upload_idle_max.as_secs();
                Err(Error::Aborted(format!("no data arrived for {seconds} s")))
            }
        }
    }

    /// Reads the first block.
    pub(crate) async fn first_block(&mut self) -> Result<Block, Error> {
        self.next_block(&TargetSize::new(RECEIVE_BLOCK_BYTES), Vec::new()).await
    }

    /// Reads a block of the target size, or a shorter one at the end of the stream. The bytes are copied, because a small piece
    /// may keep a large network buffer alive; they go into `spare` if it is large enough.
    ///
    /// Errors: the stream's; the upload is too large, was cancelled, or its client was silent for too long.
    pub(super) async fn next_block(&mut self, target: &TargetSize, spare: Vec<u8>) -> Result<Block, Error> {
        let limits = &self.context.limits;
        let mut block = if spare.capacity() >= target.bytes() {
            spare
        } else {
            drop(spare); // now, so that it is not kept while the client sends
            Vec::new()
        };
        let mut idle_deadline = Instant::now() + limits.upload_idle_max;
        loop {
            let room = target.bytes().saturating_sub(block.len());
            let taken = self.rest.split_to(room.min(self.rest.len()));
            let bytes = block.len() + taken.len();
            // More than a draft's buffer will probably become a whole block.
            let grown = if bytes > DRAFT_BUFFER_BYTES { block.len() + room } else { bytes.next_power_of_two() };
            if bytes > block.capacity() {
                block.reserve_exact(grown - block.len());
            }
            block.extend_from_slice(&taken);
            self.bytes += taken.len() as u64;
            if self.bytes > limits.upload_bytes_max {
                return Err(Error::UploadTooLarge { bytes_max: limits.upload_bytes_max });
            }
            if block.len() >= target.bytes() {
                self.body.stops_waiting(); // the client; it may have been polled before the target was lowered
                return Ok(Block { bytes: block, at_end: false });
            }
            let next = tokio::select! {
                () = self.cancel.cancelled() => return Err(Error::Cancelled),
                () = target.lowered.notified() => continue,
                next = self.body.next(idle_deadline) => next,
            };
            if !self.receive(next)? {
                return Ok(Block { bytes: block, at_end: true });
            }
            idle_deadline = Instant::now() + limits.upload_idle_max;
        }
    }
}

/// Pieces of CSV that a client's stream is rewritten to. It reads the client's stream, or a draft with its content.
pub(super) type CsvPieces<'a> = Pin<Box<dyn Stream<Item = Result<Bytes, Error>> + Send + 'a>>;

/// Where the bytes of an upload come from.
enum Body<'a, S> {
    /// From its client, as they are stored.
    Client(Paced<S>),
    /// Rewritten from another dialect.
    Rewritten { csv: CsvPieces<'a>, pace: Option<Arc<Pace>> },
}

impl<S: Stream<Item = Result<Bytes, Error>> + Unpin> Body<'_, S> {
    /// The next piece. Errors: the client sends nothing until `idle_deadline`. What is rewritten has checked that itself.
    async fn next(&mut self, idle_deadline: Instant) -> Result<Option<Result<Bytes, Error>>, Elapsed> {
        match self {
            Self::Client(body) => timeout_at(idle_deadline, body.next()).await,
            Self::Rewritten { csv, .. } => Ok(csv.next().await),
        }
    }

    /// Notes that the server does not wait for the client until the next piece is asked for.
    fn stops_waiting(&self) {
        match self {
            Self::Client(body) => body.stops_waiting(),
            Self::Rewritten { pace, .. } => pace.iter().for_each(|pace| pace.stops_waiting()),
        }
    }
}
