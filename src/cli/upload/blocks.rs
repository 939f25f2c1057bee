//! Reads a file block by block, each as the message that carries it. A buffer holds a block with the message's head in
//! front of it, so that a block is not copied between the read and the socket.
//!
//! Invariant: a file that cannot be read to its end never looks complete to the server.

use std::{
    fs::File,
    future::pending,
    io::{self, IoSliceMut, Read},
    ops::Range,
    os::unix::fs::FileExt,
    path::Path,
    sync::Arc,
    thread,
};

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, bounded};
use futures_util::stream::{self, BoxStream, Stream, StreamExt};
use rustix::{
    fs::{Advice, fadvise},
    io::{ReadWriteFlags, preadv2},
};
use tokio::{
    sync::{mpsc, oneshot},
    task::spawn_blocking,
};

use crate::{
    limits::WIDE_FRAME_BYTES_MAX,
    proto::message::{MESSAGE_HEAD_BYTES_MAX, message_head},
};

/// Bytes of a file in one message: whole pages of the page cache, as many as fit into four of the longest HTTP/2 frames
/// that the server takes. No short frame is left over.
const BLOCK_BYTES: usize = (4 * WIDE_FRAME_BYTES_MAX - MESSAGE_HEAD_BYTES_MAX) / 4096 * 4096;
/// A block begins in its buffer at a multiple of these bytes, as it does in the page cache. The kernel copies with
/// `rep movsb`, which on some processors (AMD EPYC of the fourth generation) is eight times slower, 3 GB/s instead of 26,
/// if the two offsets within a page differ by a few bytes.
const CACHE_LINE_BYTES: usize = 64;
const _: () = assert!(MESSAGE_HEAD_BYTES_MAX <= CACHE_LINE_BYTES);
/// Bytes of a buffer: the message's head, padding up to the start of the block, and the block.
const BUFFER_BYTES: usize = 2 * CACHE_LINE_BYTES + BLOCK_BYTES;
/// Blocks that are read from a pipe before the network takes them.
const BLOCKS_AHEAD_MAX: usize = 2;
/// Spare buffers that are kept for each file that is sent at the same time: one is being read into, one is being sent, and
/// a pipe has those that are read ahead.
const SPARE_BUFFERS_PER_FILE_MAX: usize = BLOCKS_AHEAD_MAX + 2;
/// The name that means standard input.
const STDIN: &str = "-";

pub(super) fn is_stdin(file: &Path) -> bool {
    file.as_os_str() == STDIN
}

/// A file that is being read.
pub(super) struct Upload {
    /// Ends with the file. After an error it neither yields a block nor ends.
    pub(super) blocks: BoxStream<'static, Block>,
    /// Gets the error if the file could not be read to its end.
    pub(super) read_error: oneshot::Receiver<io::Error>,
    /// Bytes of the file, if they are known in advance.
    pub(super) bytes: Option<u64>,
}

impl Upload {
    /// Begins to read a file. Errors: it cannot be opened.
    pub(super) async fn open(path: &Path, buffers: Buffers) -> io::Result<Self> {
        if is_stdin(path) {
            return Self::read_ahead(io::stdin(), buffers);
        }
        let path = path.to_owned();
        let open = move || {
            let file = File::open(path)?;
            let metadata = file.metadata()?;
            Ok::<_, io::Error>((file, metadata))
        };
        // On another thread: opening a named pipe blocks until somebody writes, and the other files must not wait for that.
        let (file, metadata) = spawn_blocking(open).await??;
        if !metadata.is_file() {
            return Self::read_ahead(file, buffers);
        }
        let _only_a_hint = fadvise(&file, 0, None, Advice::Sequential);
        Ok(Self::read_in_place(file, metadata.len(), buffers))
    }

    /// Reads a block on the sending thread when the network can take it: it is sent while it is still in the processor's
    /// cache, and no other thread is woken for what is in the page cache.
    fn read_in_place(file: File, bytes: u64, buffers: Buffers) -> Self {
        let blocks = FileBlocks { file: Arc::new(file), bytes, offset: 0, buffers };
        let read = stream::unfold(blocks, |mut blocks| async move {
            let block = blocks.next().await;
            Some((block, blocks))
        });
        Self::new(read, Some(bytes))
    }

    /// Reads a pipe, which may be slow, on a separate thread, a few blocks ahead of the network. This is not one of tokio's
    /// threads: the runtime would wait for it at the end of the process, and standard input may block for ever.
    fn read_ahead(mut source: impl Read + Send + 'static, buffers: Buffers) -> io::Result<Self> {
        let (sender, mut read) = mpsc::channel(BLOCKS_AHEAD_MAX);
        let read_all = move || {
            loop {
                let block = next_block(&mut source, &buffers);
                let is_last = !matches!(block, Ok(Some(_)));
                if sender.blocking_send(block).is_err() || is_last {
                    return; // sending fails if the call ends before the file does
                }
            }
        };
        thread::Builder::new().name("read".to_owned()).spawn(read_all)?;
        Ok(Self::new(stream::poll_fn(move |context| read.poll_recv(context)), None))
    }

    /// `read` yields the blocks, then `Ok(None)` at the end of the file. For the server, the end of the stream is the end of
    /// the file; so after an error the stream does not end, and half a file cannot become a part.
    fn new(read: impl Stream<Item = io::Result<Option<Block>>> + Send + 'static, bytes: Option<u64>) -> Self {
        let (error_sender, read_error) = oneshot::channel();
        let blocks = stream::unfold((read.boxed(), error_sender), |(mut read, error_sender)| async move {
            let thread_ended = || Err(io::Error::other("the thread that reads the file has ended"));
            match read.next().await.unwrap_or_else(thread_ended) {
                Ok(block) => block.map(|block| (block, (read, error_sender))),
                Err(error) => {
                    let _ = error_sender.send(error);
                    pending().await
                }
            }
        });
        Self { blocks: blocks.boxed(), read_error, bytes }
    }
}

/// A message that is ready to be sent.
pub(super) struct Block {
    /// The message's head, then bytes of the file.
    pub(super) message: Bytes,
    /// The file's bytes among them.
    pub(super) data_bytes: usize,
}

/// Reads a regular file.
struct FileBlocks {
    file: Arc<File>,
    /// The file's length when it was opened.
    bytes: u64,
    offset: u64,
    buffers: Buffers,
}

impl FileBlocks {
    /// Up to a full block; `None` at the end. What is in the page cache is read on this thread; for the rest, another thread
    /// waits for the disk.
    ///
    /// Errors: the file cannot be read, or has become shorter.
    async fn next(&mut self) -> io::Result<Option<Block>> {
        let (mut buffer, offset) = (self.buffers.take(), self.offset);
        let range = block_range(&buffer);
        let mut block = [IoSliceMut::new(&mut buffer[range.clone()])];
        let data_bytes = match preadv2(&self.file, &mut block, offset, ReadWriteFlags::NOWAIT) {
            Ok(data_bytes) if data_bytes > 0 || offset >= self.bytes => data_bytes,
            // Not cached, not supported, or an error: the blocking read shows which. Some kernels return 0 if it is not cached.
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

/// What a pipe has, up to a full block; `None` at its end. It does not wait for a full block: the server ends an upload that
/// sends nothing for too long.
fn next_block(source: &mut impl Read, buffers: &Buffers) -> io::Result<Option<Block>> {
    let mut buffer = buffers.take();
    let range = block_range(&buffer);
    let data_bytes = uninterrupted(|| source.read(&mut buffer[range.clone()]))?;
    Ok(buffers.filled(buffer, data_bytes))
}

/// Reads again if a signal interrupts the read.
fn uninterrupted(mut read: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match read() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            read => return read,
        }
    }
}

/// The bytes of a buffer that a block takes.
fn block_range(buffer: &[u8]) -> Range<usize> {
    let start = CACHE_LINE_BYTES + buffer.as_ptr().align_offset(CACHE_LINE_BYTES).min(CACHE_LINE_BYTES);
    start..start + BLOCK_BYTES
}

/// Used buffers, to be used again by any file. New memory, which the kernel must clear first, is needed only at the beginning.
#[derive(Clone)]
pub(super) struct Buffers {
    sender: Sender<Vec<u8>>,
    spare: Receiver<Vec<u8>>,
}

impl Buffers {
    pub(super) fn new(files_at_once: usize) -> Self {
        let (sender, spare) = bounded(files_at_once * SPARE_BUFFERS_PER_FILE_MAX);
        Self { sender, spare }
    }

    fn take(&self) -> Vec<u8> {
        self.spare.try_recv().unwrap_or_else(|_none| vec![0; BUFFER_BYTES])
    }

    /// The message of a buffer whose block has `data_bytes` bytes; `None` if these are 0.
    fn filled(&self, mut buffer: Vec<u8>, data_bytes: usize) -> Option<Block> {
        if data_bytes == 0 {
            self.put_back(buffer);
            return None;
        }
        let (head, block_start) = (message_head(data_bytes), block_range(&buffer).start);
        let range = block_start - head.len()..block_start + data_bytes;
        buffer[range.start..block_start].copy_from_slice(&head);
        let message = Bytes::from_owner(LentBuffer { buffer, range, buffers: self.clone() });
        Some(Block { message, data_bytes })
    }

    fn put_back(&self, buffer: Vec<u8>) {
        let _ = self.sender.try_send(buffer); // if there are enough, it is freed
    }
}

/// The buffer of a message. It is put back when the message is sent.
struct LentBuffer {
    buffer: Vec<u8>,
    /// The message.
    range: Range<usize>,
    buffers: Buffers,
}

impl AsRef<[u8]> for LentBuffer {
    fn as_ref(&self) -> &[u8] {
        &self.buffer[self.range.clone()]
    }
}

impl Drop for LentBuffer {
    fn drop(&mut self) {
        self.buffers.put_back(std::mem::take(&mut self.buffer));
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write, num::NonZero};

    use bytes::Buf;
    use futures_util::FutureExt;
    use prost::Message;

    use crate::proto::pb::tally::UploadChunk;

    use super::*;

    /// A pipe that yields its bytes, and then fails if it `fails`, or ends.
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

    /// Bytes in which no two blocks are equal.
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
            let in_place = |file| Upload::read_in_place(file, bytes as u64, Buffers::new(1));
            let pipe = Upload::read_ahead(Pipe { bytes: content.clone(), fails: false }, Buffers::new(1))?;
            // While the kernel reads ahead, or next to a hole in the cache, a read may return less than a block.
            for (upload, whole_blocks) in
                [(in_place(cached), true), (in_place(uncached), false), (in_place(holes), false), (pipe, true)]
            {
                let (mut sent, mut lengths) = (Vec::new(), Vec::new());
                for block in upload.blocks.collect::<Vec<_>>().await {
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
                assert!(upload.read_error.await.is_err(), "nothing failed");
            }
        }
        Ok(())
    }

    #[test]
    fn a_buffer_comes_back_once_its_message_is_sent() -> io::Result<()> {
        let (sender, spare) = bounded(1);
        let buffers = Buffers { sender, spare };
        let mut pipe = Pipe { bytes: content(3 * BLOCK_BYTES + 5), fails: false };
        let mut message = || next_block(&mut pipe, &buffers).map(|block| block.map(|block| block.message));

        let first = message()?.expect("a block");
        let memory = first.as_ptr();
        let half = first.slice(7..9);
        drop(first);
        assert!(buffers.spare.is_empty(), "half of it is not sent yet");
        drop(half);
        let second = message()?.expect("a block");
        assert_eq!(second.as_ptr(), memory, "the same memory again");

        // A buffer that is not needed is freed; the last one comes back as well.
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
        let mut pipe = Upload::read_ahead(Pipe { bytes: content(BLOCK_BYTES + 5), fails: true }, Buffers::new(1))?;
        assert_eq!(pipe.blocks.next().await.map(|block| block.data_bytes), Some(BLOCK_BYTES));
        assert_eq!(pipe.blocks.next().await.map(|block| block.data_bytes), Some(5));
        let folder = Upload::read_in_place(File::open("/")?, 0, Buffers::new(1));
        let file = file_of(&content(3 * BLOCK_BYTES))?;
        let mut shortened = Upload::read_in_place(file.try_clone()?, 3 * BLOCK_BYTES as u64, Buffers::new(1));
        assert_eq!(shortened.blocks.next().await.map(|block| block.data_bytes), Some(BLOCK_BYTES));
        file.set_len(BLOCK_BYTES as u64)?;
        let too_short = format!("it had {} bytes and ends after {BLOCK_BYTES}", 3 * BLOCK_BYTES);
        for (Upload { mut blocks, read_error, .. }, expected) in
            [(pipe, "the writer has failed"), (folder, "Is a directory"), (shortened, &too_short)]
        {
            // The stream must not end.
            tokio::select! {
                block = blocks.next() => panic!("the stream ended, or had another block: {}", block.is_some()),
                error = read_error => assert!(error.is_ok_and(|error| error.to_string().starts_with(expected)), "{expected}"),
            }
            assert!(blocks.next().now_or_never().is_none());
        }
        Ok(())
    }
}
