//! `tally upload`: files to the server, several side by side, a few blocks of each in memory.

use std::{
    collections::VecDeque,
    fs::File,
    future::pending,
    io::{self, IoSliceMut, Read, Write},
    ops::Range,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    thread,
};

use bytes::Bytes;
use clap::{Args, value_parser};
use crossbeam_channel::{Receiver, Sender, bounded};
use futures_util::stream::{self, BoxStream, Stream, StreamExt};
use http_body::Frame;
use http_body_util::StreamBody;
use indicatif::{MultiProgress, ProgressBar};
use rustix::{
    fs::{Advice, fadvise},
    io::{ReadWriteFlags, preadv2},
};
use serde::Serialize;
use tokio::{
    sync::{mpsc, oneshot},
    task::spawn_blocking,
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
    limits::WIDE_FRAME_BYTES_MAX,
    proto::{
        message::{MESSAGE_HEAD_BYTES_MAX, message_head},
        pb::tally::{Receipt, tally_client::TallyClient},
    },
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
/// Blocks of a pipe that are read ahead of the network.
const BLOCKS_AHEAD_MAX: usize = 2;
/// Buffers that wait to be used again, for each file that is sent at once: one is read into, one is sent, and those of a
/// pipe that are ahead.
const SPARE_BUFFERS_PER_FILE_MAX: usize = BLOCKS_AHEAD_MAX + 2;
/// The name that means standard input.
const STDIN: &str = "-";

/// Upload CSV files, each becomes one part of the table
///
/// A file is RFC 4180 CSV with a header row, comma separated, UTF-8, of any size; it is sent in
/// messages of up to 252 KiB and never held in memory. A part counts once its line is printed:
/// by then it is safe on the server's disk. A file that the server refuses leaves nothing behind
/// and does not stop the others, but the exit code is 1.
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
    let buffers = Buffers::new(channels.len());
    let mut failed = false;
    let mut files = files.into_iter();
    let mut running = stream::FuturesUnordered::new();
    loop {
        // As many files run as there are connections; a finished one gives its connection to the next.
        while !channels.is_empty()
            && let Some(file) = files.next()
            && let Some(channel) = channels.pop_front()
        {
            running.push(upload(channel, &server, file, &buffers, &progress));
        }
        let Some((file, channel, outcome)) = running.next().await else {
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
    buffers: &Buffers,
    progress: &Progress,
) -> (PathBuf, Channel, Result<Receipt, Failure>) {
    let outcome = match open(&file, buffers.clone()).await {
        Ok(reading) => {
            let bar = progress.start(&file, reading.bytes);
            let outcome = send(channel.clone(), server, reading, bar.clone()).await;
            progress.finish(&bar);
            outcome
        }
        Err(error) => Err(Failure::Input(error)),
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

/// A file that is being read.
struct Reading {
    blocks: BoxStream<'static, Block>,
    /// Why it could not be read to its end.
    failure: oneshot::Receiver<io::Error>,
    /// Bytes to send, where that is known.
    bytes: Option<u64>,
}

/// Begins to read a file.
async fn open(path: &Path, buffers: Buffers) -> io::Result<Reading> {
    if is_stdin(path) {
        return Reading::ahead(io::stdin(), buffers);
    }
    let path = path.to_owned();
    let open = move || {
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        Ok::<_, io::Error>((file, metadata))
    };
    // Not here: a named pipe opens when somebody writes, and the other files must not wait for that.
    let (file, metadata) = spawn_blocking(open).await??;
    if !metadata.is_file() {
        return Reading::ahead(file, buffers);
    }
    let _only_a_hint = fadvise(&file, 0, None, Advice::Sequential);
    Ok(Reading::in_place(file, metadata.len(), buffers))
}

impl Reading {
    /// Reads a file where it is sent, block by block as the network takes them: what has just come into the processor's
    /// cache is sent from there, and no other thread is woken for what is in the page cache.
    fn in_place(file: File, bytes: u64, buffers: Buffers) -> Self {
        let read =
            stream::unfold(FileBlocks { file: Arc::new(file), bytes, offset: 0, buffers }, |mut blocks| async move {
                let block = blocks.next().await;
                Some((block, blocks))
            });
        Self::never_half(read, Some(bytes))
    }

    /// Reads what others write, which may be slow, on a thread of its own, which waits where the network is slower. The
    /// thread is none of tokio's, whose runtime would wait for it at the end of the process, and standard input may never
    /// say another byte.
    fn ahead(mut source: impl Read + Send + 'static, buffers: Buffers) -> io::Result<Self> {
        let (sender, mut read) = mpsc::channel(BLOCKS_AHEAD_MAX);
        let read_all = move || {
            loop {
                let block = next_block(&mut source, &buffers);
                let last = !matches!(block, Ok(Some(_)));
                if sender.blocking_send(block).is_err() || last {
                    return; // sending fails when the call is over before the file is
                }
            }
        };
        thread::Builder::new().name("read".to_owned()).spawn(read_all)?;
        Ok(Self::never_half(stream::poll_fn(move |context| read.poll_recv(context)), None))
    }

    /// What is `read`, of which an inner none is the end. To the server a stream that ends is a whole file, so after an
    /// error the stream goes silent and never ends: half a file cannot become a part.
    fn never_half(read: impl Stream<Item = io::Result<Option<Block>>> + Send + 'static, bytes: Option<u64>) -> Self {
        let (failed, failure) = oneshot::channel();
        let blocks = stream::unfold((read.boxed(), failed), |(mut read, failed)| async move {
            let gone = || Err(io::Error::other("its reader is gone"));
            match read.next().await.unwrap_or_else(gone) {
                Ok(block) => block.map(|block| (block, (read, failed))),
                Err(error) => {
                    let _ = failed.send(error);
                    pending().await
                }
            }
        });
        Self { blocks: blocks.boxed(), failure, bytes }
    }
}

/// Some bytes of a file as a message on its way.
struct Block {
    message: Bytes,
    /// How many of them are the file's.
    data_bytes: usize,
}

/// A file, block by block.
struct FileBlocks {
    file: Arc<File>,
    /// How long it was when it was opened.
    bytes: u64,
    offset: u64,
    buffers: Buffers,
}

impl FileBlocks {
    /// Up to a full block; none at the end. What is in the page cache is read here, and only the rest by another thread,
    /// which waits for the disk.
    ///
    /// Errors: it cannot be read, or has become shorter.
    async fn next(&mut self) -> io::Result<Option<Block>> {
        let (mut buffer, offset) = (self.buffers.take(), self.offset);
        let range = block_range(&buffer);
        let mut block = [IoSliceMut::new(&mut buffer[range.clone()])];
        let data_bytes = match preadv2(&self.file, &mut block, offset, ReadWriteFlags::NOWAIT) {
            Ok(data_bytes) if data_bytes > 0 || offset >= self.bytes => data_bytes,
            // Not cached, not supported, or an error: it is asked again. Some kernels say 0 for what is not cached.
            _ => {
                let file = Arc::clone(&self.file);
                let read = move || {
                    let data_bytes = uninterrupted(|| file.read_at(&mut buffer[range.clone()], offset))?;
                    Ok::<_, io::Error>((buffer, data_bytes))
                };
                let data_bytes;
                (buffer, data_bytes) = spawn_blocking(read).await??;
                data_bytes
            }
        };
        if data_bytes == 0 && offset < self.bytes {
            let what = format!("it had {} bytes and ends after {offset}", self.bytes);
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, what));
        }
        self.offset += data_bytes as u64;
        Ok(self.buffers.filled(buffer, data_bytes))
    }
}

/// What is there, up to a full block; none at the end. A pipe that fills slowly does not wait for a full block, for the
/// server gives up on who sends nothing.
fn next_block(source: &mut impl Read, buffers: &Buffers) -> io::Result<Option<Block>> {
    let mut buffer = buffers.take();
    let range = block_range(&buffer);
    let data_bytes = uninterrupted(|| source.read(&mut buffer[range.clone()]))?;
    Ok(buffers.filled(buffer, data_bytes))
}

fn uninterrupted(mut read: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match read() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            read => return read,
        }
    }
}

/// Where a block stands in its buffer.
fn block_range(buffer: &[u8]) -> Range<usize> {
    let start = CACHE_LINE_BYTES + buffer.as_ptr().align_offset(CACHE_LINE_BYTES).min(CACHE_LINE_BYTES);
    start..start + BLOCK_BYTES
}

/// Buffers that were used and may be again, by any file: the kernel makes new memory only for the first ones.
#[derive(Clone)]
struct Buffers {
    back: Sender<Vec<u8>>,
    spare: Receiver<Vec<u8>>,
}

impl Buffers {
    fn new(files_at_once: usize) -> Self {
        let (back, spare) = bounded(files_at_once * SPARE_BUFFERS_PER_FILE_MAX);
        Self { back, spare }
    }

    fn take(&self) -> Vec<u8> {
        self.spare.try_recv().unwrap_or_else(|_none| vec![0; BUFFER_BYTES])
    }

    /// The message of a buffer whose block has so many bytes; none if it has none.
    fn filled(&self, mut buffer: Vec<u8>, data_bytes: usize) -> Option<Block> {
        if data_bytes == 0 {
            self.give(buffer);
            return None;
        }
        let (head, block_start) = (message_head(data_bytes), block_range(&buffer).start);
        let range = block_start - head.len()..block_start + data_bytes;
        buffer[range.start..block_start].copy_from_slice(&head);
        let message = Bytes::from_owner(Lent { buffer, range, buffers: self.clone() });
        Some(Block { message, data_bytes })
    }

    fn give(&self, buffer: Vec<u8>) {
        let _ = self.back.try_send(buffer); // if there are enough, it is freed
    }
}

/// A message in a buffer that goes back once the message is sent.
struct Lent {
    buffer: Vec<u8>,
    range: Range<usize>,
    buffers: Buffers,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.buffer[self.range.clone()]
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.buffers.give(std::mem::take(&mut self.buffer));
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
    use std::num::NonZero;

    use bytes::Buf;
    use futures_util::FutureExt;
    use prost::Message;

    use crate::proto::pb::tally::UploadChunk;

    use super::*;

    /// A pipe that brings what it has, and then breaks if it `fails`.
    struct Pipe {
        bytes: Bytes,
        fails: bool,
    }

    impl Read for Pipe {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if self.bytes.is_empty() && self.fails {
                return Err(io::Error::other("the writer has failed"));
            }
            let piece = self.bytes.split_to(buffer.len().min(self.bytes.len()));
            buffer[..piece.len()].copy_from_slice(&piece);
            Ok(piece.len())
        }
    }

    /// Bytes of which no block is like another.
    fn content(bytes: usize) -> Bytes {
        (0..=250).cycle().take(bytes).collect()
    }

    fn file_of(content: &[u8]) -> io::Result<File> {
        let mut file = tempfile::tempfile()?;
        file.write_all(content)?;
        file.sync_all()?; // what is not on disk yet is not dropped from the page cache
        Ok(file)
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
            let content = content(bytes);
            let (cached, uncached, holes) = (file_of(&content)?, file_of(&content)?, file_of(&content)?);
            fadvise(&uncached, 0, None, Advice::DontNeed)?;
            fadvise(&holes, BLOCK_BYTES as u64 / 3, NonZero::new(BLOCK_BYTES as u64), Advice::DontNeed)?;
            let in_place = |file| Reading::in_place(file, bytes as u64, Buffers::new(1));
            let pipe = Reading::ahead(Pipe { bytes: content.clone(), fails: false }, Buffers::new(1))?;
            // What is read while the kernel reads ahead, or beside a hole, may be less than a block.
            for (reading, whole_blocks) in
                [(in_place(cached), true), (in_place(uncached), false), (in_place(holes), false), (pipe, true)]
            {
                let (mut sent, mut lengths) = (Vec::new(), Vec::new());
                for block in reading.blocks.collect::<Vec<_>>().await {
                    let mut message = block.message;
                    let block_start = message.as_ptr().addr() + message.len() - block.data_bytes;
                    assert_eq!(block_start % CACHE_LINE_BYTES, 0, "{bytes} bytes");
                    assert_eq!((message.get_u8(), message.get_u32() as usize), (0, message.len()));
                    let chunk = UploadChunk::decode(message).expect("a message");
                    assert_eq!(chunk.data.len(), block.data_bytes);
                    lengths.push(chunk.data.len());
                    sent.extend_from_slice(&chunk.data);
                }
                assert!(sent == content, "{bytes} bytes in {lengths:?}");
                assert!(!whole_blocks || lengths == expected, "{bytes} bytes in {lengths:?}");
                assert!(reading.failure.await.is_err(), "nothing failed");
            }
        }
        Ok(())
    }

    #[test]
    fn a_buffer_comes_back_once_its_message_is_sent() -> io::Result<()> {
        let (back, spare) = bounded(1);
        let buffers = Buffers { back, spare };
        let mut pipe = Pipe { bytes: content(3 * BLOCK_BYTES + 5), fails: false };
        let mut message = || next_block(&mut pipe, &buffers).map(|block| block.map(|block| block.message));

        let first = message()?.expect("a block");
        let memory = first.as_ptr();
        let half = first.slice(7..9);
        drop(first);
        assert!(buffers.spare.is_empty(), "a part of it is not sent yet");
        drop(half);
        let second = message()?.expect("a block");
        assert_eq!(second.as_ptr(), memory, "the same memory again");

        // More than may wait are freed, and none is lost at the end.
        let third = message()?.expect("a block");
        drop((second, third));
        assert_eq!(buffers.spare.len(), 1);
        let last = message()?.expect("a block");
        assert!(buffers.spare.is_empty() && message()?.is_none() && buffers.spare.len() == 1);
        drop(last);
        assert_eq!(buffers.spare.len(), 1);
        Ok(())
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_read_to_its_end_never_looks_whole() -> io::Result<()> {
        let mut pipe = Reading::ahead(Pipe { bytes: content(BLOCK_BYTES + 5), fails: true }, Buffers::new(1))?;
        assert_eq!(pipe.blocks.next().await.map(|block| block.data_bytes), Some(BLOCK_BYTES));
        assert_eq!(pipe.blocks.next().await.map(|block| block.data_bytes), Some(5));
        let folder = Reading::in_place(File::open("/")?, 0, Buffers::new(1));
        let file = file_of(&content(3 * BLOCK_BYTES))?;
        let mut shortened = Reading::in_place(file.try_clone()?, 3 * BLOCK_BYTES as u64, Buffers::new(1));
        assert_eq!(shortened.blocks.next().await.map(|block| block.data_bytes), Some(BLOCK_BYTES));
        file.set_len(BLOCK_BYTES as u64)?;
        let too_short = format!("it had {} bytes and ends after {BLOCK_BYTES}", 3 * BLOCK_BYTES);
        for (Reading { mut blocks, failure, .. }, expected) in
            [(pipe, "the writer has failed"), (folder, "Is a directory"), (shortened, &too_short)]
        {
            // The end of the stream is what must not come.
            tokio::select! {
                block = blocks.next() => panic!("it ends, or goes on: {}", block.is_some()),
                error = failure => assert!(error.is_ok_and(|error| error.to_string().starts_with(expected)), "{expected}"),
            }
            assert!(blocks.next().now_or_never().is_none());
        }
        Ok(())
    }
}
