//! The blocks of an upload: how much is read ahead of the worker.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use tokio::{
    sync::Notify,
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;

use crate::{
    engine::{runtime::context::Context, runtime::transfers::Paced},
    error::Error,
    limits::{DRAFT_BUFFER_BYTES, RECEIVE_BLOCK_BYTES},
};

/// Some of a stream.
pub(crate) struct Block {
    pub(crate) bytes: Vec<u8>,
    /// Whether nothing follows.
    pub(crate) at_end: bool,
}

/// How much of a stream is worth a hand-over to a worker: as much as comes while the worker is busy, within bounds.
pub(super) struct Wish {
    bytes: AtomicUsize,
    lowered: Notify,
}

impl Wish {
    pub(super) fn new(bytes: usize) -> Self {
        Self { bytes: AtomicUsize::new(bytes), lowered: Notify::new() }
    }

    /// Whoever waits for more is content with this.
    pub(super) fn lower(&self, bytes: usize) {
        self.bytes.store(bytes, Ordering::Relaxed);
        self.lowered.notify_one();
    }

    fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }
}

/// A stream on its way into blocks.
pub(crate) struct Incoming<'a, S> {
    pub(super) context: &'a Arc<Context>,
    pub(super) cancel: &'a CancellationToken,
    body: Paced<S>,
    /// What came and is in no block yet.
    rest: Bytes,
    /// Bytes of all blocks so far.
    pub(super) bytes: u64,
}

impl<'a, S: Stream<Item = Result<Bytes, Error>> + Unpin> Incoming<'a, S> {
    pub(crate) fn new(context: &'a Arc<Context>, cancel: &'a CancellationToken, body: Paced<S>) -> Self {
        Self { context, cancel, body, rest: Bytes::new(), bytes: 0 }
    }

    /// The first one, of a usual size.
    pub(crate) async fn first_block(&mut self) -> Result<Block, Error> {
        self.next_block(&Wish::new(RECEIVE_BLOCK_BYTES), Vec::new()).await
    }

    /// As much of the stream as is wished for, and whether that was its end. Copied, so that small pieces pin no large
    /// buffers; into `spare` if it is large enough.
    pub(super) async fn next_block(&mut self, wish: &Wish, spare: Vec<u8>) -> Result<Block, Error> {
        let limits = &self.context.limits;
        let mut block = if spare.capacity() >= wish.bytes() {
            spare
        } else {
            drop(spare); // now, not when the block has come
            Vec::new()
        };
        let mut patient_until = Instant::now() + limits.upload_idle_max;
        loop {
            let room = wish.bytes().saturating_sub(block.len());
            let taken = self.rest.split_to(room.min(self.rest.len()));
            let bytes = block.len() + taken.len();
            // What is longer than a small file will be a whole block, most likely.
            let grown = if bytes > DRAFT_BUFFER_BYTES { block.len() + room } else { bytes.next_power_of_two() };
            if bytes > block.capacity() {
                block.reserve_exact(grown - block.len());
            }
            block.extend_from_slice(&taken);
            self.bytes += taken.len() as u64;
            if self.bytes > limits.upload_bytes_max {
                return Err(Error::UploadTooLarge { bytes_max: limits.upload_bytes_max });
            }
            if block.len() >= wish.bytes() {
                self.body.stops_waiting(); // it may have been polled for more before the wish was lowered
                return Ok(Block { bytes: block, at_end: false });
            }
            let next = tokio::select! {
                () = self.cancel.cancelled() => return Err(Error::Cancelled),
                () = wish.lowered.notified() => continue,
                next = timeout_at(patient_until, self.body.next()) => next,
            };
            match next {
                Ok(Some(bytes)) => {
                    self.rest = bytes?;
                    self.context.received_bytes.fetch_add(self.rest.len() as u64, Ordering::Relaxed);
                    patient_until = Instant::now() + limits.upload_idle_max;
                }
                Ok(None) => return Ok(Block { bytes: block, at_end: true }),
                Err(_elapsed) => {
                    let seconds = limits.upload_idle_max.as_secs();
                    return Err(Error::Aborted(format!("nothing came for {seconds} s")));
                }
            }
        }
    }
}
