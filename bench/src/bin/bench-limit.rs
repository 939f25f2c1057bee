//! Measures a lower bound for the time of a sum: reads byte ranges from the page cache and counts the newlines in them with
//! SIMD, on all cores.
//!
//! Takes lines of `PATH<tab>OFFSET<tab>LENGTH` on standard input and prints JSON. Opening the files is part of the time, as
//! it is for a sum.

use std::{
    error::Error,
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    path::PathBuf,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Instant,
};

use serde_json::json;

/// Bytes that a thread reads at a time: few enough to be in its core's cache when it counts.
const BLOCK_BYTES: u64 = 128 * 1024;
/// Bytes of a file that a thread takes at a time: few enough that all threads finish at about the same time.
const PIECE_BYTES: u64 = 4 * 1024 * 1024;

struct Piece {
    path: PathBuf,
    offset: u64,
    bytes: u64,
}

/// Parses the input and splits each byte range into pieces.
fn parse_pieces(lines: impl Iterator<Item = io::Result<String>>) -> Result<Vec<Piece>, Box<dyn Error>> {
    let mut pieces = Vec::new();
    for line in lines {
        let line = line?;
        let mut fields = line.rsplitn(3, '\t');
        let (Some(length), Some(offset), Some(path)) = (fields.next(), fields.next(), fields.next()) else {
            return Err(format!("this line is not PATH<tab>OFFSET<tab>LENGTH: {line}").into());
        };
        let (mut offset, length): (u64, u64) = (offset.parse()?, length.parse()?);
        let end = offset + length;
        while offset < end {
            let bytes = PIECE_BYTES.min(end - offset);
            pieces.push(Piece { path: path.into(), offset, bytes });
            offset += bytes;
        }
    }
    Ok(pieces)
}

/// Takes pieces until there are no more, and counts their newlines.
fn count_newlines(pieces: &[Piece], next: &AtomicUsize) -> io::Result<usize> {
    let mut block = vec![0; usize::try_from(BLOCK_BYTES).map_err(io::Error::other)?];
    let mut newlines = 0;
    while let Some(piece) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
        let file = File::open(&piece.path)?;
        let end = piece.offset + piece.bytes;
        let mut offset = piece.offset;
        while offset < end {
            let wanted = usize::try_from(BLOCK_BYTES.min(end - offset)).map_err(io::Error::other)?;
            file.read_exact_at(&mut block[..wanted], offset)?;
            newlines += memchr::memchr_iter(b'\n', &block[..wanted]).count();
            offset += wanted as u64;
        }
    }
    Ok(newlines)
}

fn main() -> Result<(), Box<dyn Error>> {
    let pieces = parse_pieces(io::stdin().lines())?;
    let threads_count = thread::available_parallelism()?.get();

    let start = Instant::now();
    let next = AtomicUsize::new(0);
    let newlines = thread::scope(|scope| {
        let threads: Vec<_> = (0..threads_count).map(|_| scope.spawn(|| count_newlines(&pieces, &next))).collect();
        let counts = threads.into_iter().map(|thread| thread.join().unwrap_or(Err(io::ErrorKind::Other.into())));
        counts.sum::<io::Result<usize>>()
    })?;
    let seconds = start.elapsed().as_secs_f64();

    let bytes: u64 = pieces.iter().map(|piece| piece.bytes).sum();
    println!("{}", json!({ "seconds": seconds, "bytes": bytes, "newlines": newlines }));
    Ok(())
}
