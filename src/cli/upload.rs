//! `tally upload`: files to the server, several side by side, a few blocks of each in memory, and of the next one.

use std::{
    collections::VecDeque,
    future::pending,
    io::{self, Read, Write},
    ops::Range,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{
        Arc,
        mpsc::{SyncSender, sync_channel},
    },
    thread,
};

use bytes::Bytes;
use clap::{Args, value_parser};
use futures_util::stream::{self, BoxStream, Stream, StreamExt};
use http_body::Frame;
use http_body_util::StreamBody;
use indicatif::{MultiProgress, ProgressBar};
use serde::Serialize;
use tokio::{
    sync::{Notify, mpsc, oneshot},
    task::JoinHandle,
};
use tonic::{Status, body::Body, transport::Channel};
use tower::{Service as _, ServiceExt as _, service_fn};

use super::{
    Failure,
    connect::{ClientArgs, RECEIPT_BYTES_MAX, ServerAddr, call_failure, connect},
    escaped,
    parts::{ReceiptJson, file_bytes},
    print_error, rows_text, style, write_json,
};
use crate::{
    api::grpc::{
        adapter::{MESSAGE_HEAD_BYTES_MAX, message_head},
        pb::tally::{Receipt, tally_client::TallyClient},
    },
    limits::WIDE_FRAME_BYTES_MAX,
};

/// Bytes of a block of a file, which a message brings: whole pages of the page cache, as many as fit in HTTP/2 frames of the
/// length that a server of ours likes best, without a short one at the end.
const BLOCK_BYTES: usize = (4 * WIDE_FRAME_BYTES_MAX - MESSAGE_HEAD_BYTES_MAX) / 4096 * 4096;
/// A block stands in its buffer at a multiple of these bytes, as it does in the page cache. There are processors (AMD EPYC of
/// the fourth generation) whose `rep movsb`, which the kernel copies with, takes eight times as long if the one stands a
/// few bytes behind the other, seen from where pages begin: 3 GB/s for 26.
const CACHE_LINE_BYTES: usize = 64;
const _: () = assert!(MESSAGE_HEAD_BYTES_MAX <= CACHE_LINE_BYTES);
/// Bytes of a buffer: room for the message's head and to begin the block where it should, then the block.
const BUFFER_BYTES: usize = 2 * CACHE_LINE_BYTES + BLOCK_BYTES;
/// Blocks of one file that are read ahead of the network.
const BLOCKS_AHEAD_MAX: usize = 2;
/// Buffers of one file that wait to be used again.
const BUFFERS_MAX: usize = BLOCKS_AHEAD_MAX + 2;
/// The name that means standard input.
const STDIN: &str = "-";

/// Upload CSV files, each becomes one part of the table
///
/// A file is RFC 4180 CSV with a header row, comma separated, UTF-8, of any size; it is sent in
/// messages of 252 KiB and never held in memory. A part counts once its line is printed: by then it
/// is safe on the server's disk. A file that the server refuses leaves nothing behind and does
/// not stop the others, but the exit code is 1.
#[derive(Debug, Args)]
#[command(
    verbatim_doc_comment,
    after_help = "Examples:\n  \
        tally upload inputs/*.csv\n  \
        tally upload --parallel 8 --server tally.internal:5440 day-*.csv\n  \
        zcat big.csv.gz | tally upload -\n  \
        tally upload --json a.csv      {\"file\":\"a.csv\",\"part\":1,\"rows\":2,...} or {\"file\":...,\"error\":...}"
)]
pub struct UploadArgs {
    /// The files; - is standard input
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,

    /// How many files are sent at once, 1 to 64
    #[arg(long, value_name = "N", env = "TALLY_PARALLEL", hide_env_values = true, default_value_t = 4,
          value_parser = value_parser!(u8).range(1..=64))]
    pub parallel: u8,

    /// Where and how to send.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// A file's line of `--json`.
#[derive(Serialize)]
struct FileLine<'a> {
    file: &'a str,
    #[serde(flatten)]
    outcome: Outcome<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Outcome<'a> {
    Kept(ReceiptJson<'a>),
    Refused { error: String },
}

impl<'a> FileLine<'a> {
    fn of(file: &'a str, outcome: &'a Result<Receipt, Failure>) -> Self {
        let outcome = match outcome {
            Ok(receipt) => Outcome::Kept(receipt.into()),
            Err(failure) => Outcome::Refused { error: failure.to_string() },
        };
        Self { file, outcome }
    }
}

pub(super) async fn run(args: UploadArgs) -> Result<ExitCode, Failure> {
    let UploadArgs { files, parallel, client: ClientArgs { server, json } } = args;
    if files.iter().filter(|file| is_stdin(file)).count() > 1 {
        print_error("standard input (-) can be uploaded only once");
        return Ok(ExitCode::from(2));
    }

    // A connection for each file on its way: on a single one they would share its HTTP/2 window. Made before the
    // first file is read, so that a server that is not there is said once.
    let mut channels = VecDeque::new();
    for _ in 0..files.len().min(parallel.into()) {
        channels.push_back(connect(&server).await?);
    }

    let progress = Progress::new(files.len());
    let mut failed = false;
    // While the last bytes of a file are on their way, the next one is opened and begun.
    let source_read = Arc::new(Notify::new());
    let mut files = files.into_iter();
    let mut open_next = || files.next().map(|file| (file.clone(), tokio::spawn(open(file, Arc::clone(&source_read)))));
    let mut ahead = None;
    let mut running = stream::FuturesUnordered::new();
    loop {
        // As many files run as there are connections; a finished one gives its connection to the next.
        while let Some(channel) = channels.pop_front() {
            let Some((file, opening)) = ahead.take().or_else(&mut open_next) else {
                channels.push_front(channel);
                break;
            };
            running.push(upload(channel, &server, file, opening, &progress));
        }
        let finished = tokio::select! {
            () = source_read.notified() => {
                ahead = ahead.or_else(&mut open_next);
                continue;
            }
            finished = running.next() => finished,
        };
        let Some((file, channel, outcome)) = finished else {
            break;
        };
        channels.push_back(channel);
        let name = file.to_string_lossy();
        failed |= outcome.is_err();
        if let Err(error) = progress.suspend(|| print_outcome(&name, &outcome, json)) {
            // A reader that has gone wants no lines, but the files are still to be sent.
            if error.kind() != io::ErrorKind::BrokenPipe {
                failed = true;
                progress.suspend(|| print_error(Failure::Output(error)));
            }
        }
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn is_stdin(file: &Path) -> bool {
    file.as_os_str() == STDIN
}

fn print_outcome(name: &str, outcome: &Result<Receipt, Failure>, json: bool) -> io::Result<()> {
    let mut out = io::stdout();
    if let Err(failure) = outcome {
        print_error(format!("{name}: {failure}"));
    }
    match outcome {
        _ if json => write_json(&mut out, &FileLine::of(name, outcome)),
        Ok(receipt) => {
            let (name, rows, bytes) = (escaped(name), rows_text(receipt.rows), file_bytes(receipt.csv.as_ref()));
            writeln!(out, "part {}: {name}, {rows}, {bytes} bytes", receipt.part)
        }
        Err(_) => Ok(()),
    }
}

/// One file, from its first byte to the server's receipt. Gives the file's name and the connection back.
async fn upload(
    channel: Channel,
    server: &ServerAddr,
    file: PathBuf,
    opening: JoinHandle<io::Result<Reading>>,
    progress: &Progress,
) -> (PathBuf, Channel, Result<Receipt, Failure>) {
    let outcome = match opening.await {
        Ok(Ok(reading)) => {
            let bar = progress.start(&file, reading.bytes);
            let outcome = send(channel.clone(), server, reading, bar.clone()).await;
            progress.finish(&bar);
            outcome
        }
        Ok(Err(error)) => Err(Failure::Input(error)),
        Err(panic) => Err(Failure::Internal(panic.to_string())),
    };
    progress.count();
    (file, channel, outcome)
}

async fn send(channel: Channel, server: &ServerAddr, reading: Reading, bar: ProgressBar) -> Result<Receipt, Failure> {
    let Reading { blocks, failure, .. } = reading;
    let frames = blocks.map(move |block| {
        bar.inc(block.data_bytes as u64);
        Ok::<_, Status>(Frame::data(block.message))
    });
    // tonic would make each message by copying its block. So it is given none, and its empty body is replaced by ours.
    let mut body = Some(Body::new(StreamBody::new(frames)));
    let replace = service_fn(move |request: http::Request<Body>| {
        let body = body.take().unwrap_or_else(|| broken(Status::internal("a file is sent only once")));
        let channel = channel.clone();
        async move { channel.ready_oneshot().await?.call(request.map(|_empty| body)).await }
    });
    let mut tally = TallyClient::new(replace).max_decoding_message_size(RECEIPT_BYTES_MAX);
    tokio::select! {
        answer = tally.upload(stream::empty()) => {
            answer.map(tonic::Response::into_inner).map_err(|status| call_failure(server, &status))
        }
        // The call is dropped: its stream is reset, and the server keeps nothing.
        Ok(error) = failure => Err(Failure::Input(error)),
    }
}

/// A body that nobody takes for a whole file.
fn broken(status: Status) -> Body {
    Body::new(StreamBody::new(stream::iter([Err::<Frame<Bytes>, _>(status)])))
}

type Source = Box<dyn Read + Send>;

/// A file that is being read.
struct Reading {
    blocks: BoxStream<'static, Block>,
    /// Why it could not be read to its end.
    failure: oneshot::Receiver<io::Error>,
    /// Bytes to send, where that is known.
    bytes: Option<u64>,
}

/// Begins to read a file, and tells once it was read to its end.
async fn open(file: PathBuf, source_read: Arc<Notify>) -> io::Result<Reading> {
    let (source, bytes): (Source, _) = if is_stdin(&file) {
        (Box::new(io::stdin()), None)
    } else {
        // Not by std: a named pipe opens when somebody writes, and the other files must not wait for that.
        let file = tokio::fs::File::open(file).await?;
        let metadata = file.metadata().await?;
        let bytes = metadata.is_file().then_some(metadata.len());
        (Box::new(file.into_std().await), bytes)
    };
    let (blocks, failure) = read_in_background(source, source_read)?;
    Ok(Reading { blocks: blocks.boxed(), failure, bytes })
}

/// Some bytes of a file as a message on its way.
struct Block {
    message: Bytes,
    /// How many of them are the file's.
    data_bytes: usize,
}

/// Reads `source` on a thread of its own, which waits where the network is slower. Gives the blocks and, should
/// reading fail, the error. Tells once all is read.
///
/// To the server a stream that ends is a whole file, so after an error the stream goes silent and never ends: half a
/// file cannot become a part. The thread is none of tokio's, whose runtime would wait for it at the end of the
/// process, and standard input may never say another byte.
fn read_in_background(
    mut source: Source,
    source_read: Arc<Notify>,
) -> io::Result<(impl Stream<Item = Block> + Send + 'static, oneshot::Receiver<io::Error>)> {
    let (blocks, received) = mpsc::channel(BLOCKS_AHEAD_MAX);
    let (failure, failed) = oneshot::channel();
    let read = move || {
        // Buffers come back once they are sent: one that was used just now is still in the cache.
        let (back, spare) = sync_channel(BUFFERS_MAX);
        loop {
            let buffer = spare.try_recv().unwrap_or_else(|_none| vec![0; BUFFER_BYTES]);
            let block = match read_block(&mut source, buffer, &back) {
                Ok(block) => block,
                Err(error) => {
                    let _ = failure.send(error);
                    return;
                }
            };
            let last = block.is_none();
            if last {
                source_read.notify_one();
            }
            let sent = blocks.blocking_send(block);
            if last || sent.is_err() {
                return; // sent fails when the call is over before the file is
            }
        }
    };
    thread::Builder::new().name("read".to_owned()).spawn(read)?;

    let stream = stream::unfold(received, |mut received| async move {
        match received.recv().await {
            Some(Some(block)) => Some((block, received)),
            Some(None) => None,
            None => pending().await,
        }
    });
    Ok((stream, failed))
}

/// What is there, up to a full block; none at the end. A pipe that fills slowly does not wait for a full block, for the
/// server gives up on who sends nothing.
fn read_block(source: &mut impl Read, mut buffer: Vec<u8>, back: &SyncSender<Vec<u8>>) -> io::Result<Option<Block>> {
    let block_at = CACHE_LINE_BYTES + buffer.as_ptr().align_offset(CACHE_LINE_BYTES).min(CACHE_LINE_BYTES);
    let data_bytes = loop {
        match source.read(&mut buffer[block_at..block_at + BLOCK_BYTES]) {
            Ok(0) => return Ok(None),
            Ok(bytes) => break bytes,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    };
    let head = message_head(data_bytes);
    let range = block_at - head.len()..block_at + data_bytes;
    buffer[range.start..block_at].copy_from_slice(&head);
    let message = Bytes::from_owner(Lent { buffer, range, back: back.clone() });
    Ok(Some(Block { message, data_bytes }))
}

/// A message in a buffer that goes back to the reader once the message is sent.
struct Lent {
    buffer: Vec<u8>,
    range: Range<usize>,
    back: SyncSender<Vec<u8>>,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.buffer[self.range.clone()]
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        // If the reader has enough, or is gone, it is freed.
        let _ = self.back.try_send(std::mem::take(&mut self.buffer));
    }
}

/// The bars on standard error, one for each file on its way. Where that is no terminal, nothing is drawn.
struct Progress {
    bars: MultiProgress,
    /// Files done, where there is more than one; stands below the others.
    total: Option<ProgressBar>,
}

impl Progress {
    fn new(files_count: usize) -> Self {
        let bars = MultiProgress::new();
        let total = (files_count > 1).then(|| {
            let total = ProgressBar::new(files_count as u64).with_style(style("{pos} of {len} files, {elapsed}"));
            bars.add(total)
        });
        Self { bars, total }
    }

    fn start(&self, file: &Path, bytes: Option<u64>) -> ProgressBar {
        let bar = byte_bar(file, bytes);
        match &self.total {
            Some(total) => self.bars.insert_before(total, bar),
            None => self.bars.add(bar),
        }
    }

    fn finish(&self, bar: &ProgressBar) {
        bar.finish_and_clear();
        self.bars.remove(bar);
    }

    fn count(&self) {
        if let Some(total) = &self.total {
            total.inc(1);
        }
    }

    /// Prints lines with the bars out of their way.
    fn suspend<T>(&self, print: impl FnOnce() -> T) -> T {
        self.bars.suspend(print)
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(total) = &self.total {
            total.finish_and_clear();
        }
    }
}

/// A bar for a file of so many bytes, or a count where that is not known.
pub(super) fn byte_bar(file: &Path, bytes: Option<u64>) -> ProgressBar {
    let bar = match bytes {
        Some(bytes) => ProgressBar::new(bytes)
            .with_style(style("{prefix:32!} {bytes:>11} {bytes_per_sec:>13} {wide_bar} {percent:>3}%")),
        None => ProgressBar::no_length().with_style(style("{prefix:32!} {bytes:>11} {bytes_per_sec:>13}")),
    };
    let name = file.file_name().unwrap_or(file.as_os_str()).to_string_lossy();
    bar.set_prefix(escaped(&name).into_owned());
    bar
}

#[cfg(test)]
mod tests {
    use bytes::Buf;
    use futures_util::FutureExt;
    use prost::Message;

    use super::*;
    use crate::api::grpc::pb::tally::UploadChunk;

    /// A file of so many bytes, and behind them a bad sector if it `fails`.
    struct Disk {
        bytes: usize,
        fails: bool,
    }

    impl Read for Disk {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if self.bytes == 0 && self.fails {
                return Err(io::Error::other("bad sector"));
            }
            let piece = buffer.len().min(self.bytes);
            buffer[..piece].fill(b'7');
            self.bytes -= piece;
            Ok(piece)
        }
    }

    #[tokio::test]
    async fn a_file_is_cut_into_messages() -> io::Result<()> {
        for (bytes, expected) in [
            (0, vec![]),
            (1, vec![1]),
            (127, vec![127]),
            (128, vec![128]),
            (BLOCK_BYTES, vec![BLOCK_BYTES]),
            (3 * BLOCK_BYTES + 5, vec![BLOCK_BYTES, BLOCK_BYTES, BLOCK_BYTES, 5]),
        ] {
            let (blocks, failed) = read_in_background(Box::new(Disk { bytes, fails: false }), Arc::default())?;
            let blocks: Vec<Block> = blocks.collect().await;
            assert_eq!(blocks.iter().map(|block| block.data_bytes).collect::<Vec<_>>(), expected);
            for block in blocks {
                let mut message = block.message;
                let block_at = message.as_ptr().addr() + message.len() - block.data_bytes;
                assert_eq!(block_at % CACHE_LINE_BYTES, 0, "{bytes} bytes");
                assert_eq!((message.get_u8(), message.get_u32() as usize), (0, message.len()));
                let chunk = UploadChunk::decode(message).expect("a message");
                assert_eq!(chunk.data, vec![b'7'; block.data_bytes]);
            }
            assert!(failed.await.is_err(), "nothing failed");
        }
        Ok(())
    }

    #[test]
    fn a_buffer_comes_back_once_its_message_is_sent() -> io::Result<()> {
        let (back, spare) = sync_channel(1);
        let mut disk = Disk { bytes: 2 * BLOCK_BYTES + 5, fails: false };
        let buffer = vec![0; BUFFER_BYTES];
        let memory = buffer.as_ptr();
        let first = read_block(&mut disk, buffer, &back)?.expect("a block").message;
        let half = first.slice(7..9);
        drop(first);
        assert!(spare.try_recv().is_err(), "a part of it is not sent yet");
        drop(half);
        let buffer = spare.try_recv().expect("it came back");
        assert_eq!((buffer.as_ptr(), buffer.len()), (memory, BUFFER_BYTES));

        // More than anybody waits for are freed, and all once the file is read.
        let second = read_block(&mut disk, buffer, &back)?.expect("a block").message;
        let third = read_block(&mut disk, vec![0; BUFFER_BYTES], &back)?.expect("a block").message;
        drop((second, third));
        assert!(spare.try_recv().is_ok() && spare.try_recv().is_err());
        assert!(read_block(&mut disk, vec![0; BUFFER_BYTES], &back)?.is_none());
        Ok(())
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_read_to_its_end_never_looks_whole() -> io::Result<()> {
        let (blocks, failed) =
            read_in_background(Box::new(Disk { bytes: BLOCK_BYTES + 5, fails: true }), Arc::default())?;
        let mut blocks = std::pin::pin!(blocks);
        assert_eq!(blocks.next().await.map(|block| block.data_bytes), Some(BLOCK_BYTES));
        assert_eq!(blocks.next().await.map(|block| block.data_bytes), Some(5));
        assert_eq!(failed.await.map(|error| error.to_string()), Ok("bad sector".to_owned()));
        // The reader is gone and has said why. The end of the stream is what must not come.
        assert!(blocks.next().now_or_never().is_none());
        Ok(())
    }
}
