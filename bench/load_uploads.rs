//! Sends uploads as cheaply as a client can, so that what is measured on a small machine is the server: HTTP/2 written by
//! hand on blocking sockets, files read into memory before the clock starts, one connection and one thread a client.
//!
//! ```text
//! cargo run --release --example load_uploads -- HOST:PORT CLIENTS UPLOADS FILE...
//! ```
//!
//! UPLOADS calls of `/Table/Upload` in all, of the files in turn. Prints one line of JSON. An answer that is not "kept"
//! ends it with an error.

use std::{
    env,
    error::Error,
    fs,
    io::{self, BufReader, IoSlice, Read, Write},
    net::TcpStream,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// RFC 9113, section 6: the frames that matter here.
mod frame {
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const RESET: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PING: u8 = 6;
    pub const GO_AWAY: u8 = 7;
    pub const WINDOW_UPDATE: u8 = 8;
    /// ACK of SETTINGS and PING, END_STREAM of DATA and HEADERS.
    pub const FLAG_END: u8 = 1;
    pub const FLAG_END_HEADERS: u8 = 4;
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// What `UploadResp` is when the file was kept: a message of no bytes.
const KEPT: &[u8] = &[0; 5];

/// One connection, one call at a time.
struct Client {
    out: TcpStream,
    input: BufReader<TcpStream>,
    headers: Vec<u8>,
    stream: u32,
    /// Bytes that may be sent: on the connection, on the stream at hand, on a new stream.
    connection_window: i64,
    stream_window: i64,
    initial_window: i64,
    frame_bytes_max: usize,
    payload: Vec<u8>,
}

impl Client {
    fn connect(address: &str) -> Outcome<Self> {
        let out = TcpStream::connect(address)?;
        out.set_nodelay(true)?;
        let mut client = Self {
            input: BufReader::with_capacity(16 * 1024, out.try_clone()?),
            out,
            headers: headers(address),
            stream: 1,
            connection_window: 65_535,
            stream_window: 65_535,
            initial_window: 65_535,
            frame_bytes_max: 16_384,
            payload: Vec::new(),
        };
        let mut hello = PREFACE.to_vec();
        hello.extend_from_slice(&head(0, frame::SETTINGS, 0, 0));
        client.out.write_all(&hello)?;
        // The server's first frame is its settings.
        client.read_frame()?;
        client.stream_window = client.initial_window;
        Ok(client)
    }

    /// One upload, from its first byte to the answer's last.
    fn upload(&mut self, message: &[u8]) -> Outcome<()> {
        self.stream_window = self.initial_window;
        let mut headers = head(self.headers.len(), frame::HEADERS, frame::FLAG_END_HEADERS, self.stream).to_vec();
        headers.extend_from_slice(&self.headers);
        let mut sent = 0;
        while sent < message.len() {
            let window = self.connection_window.min(self.stream_window);
            if window <= 0 {
                self.read_frame()?;
                continue;
            }
            let bytes = (message.len() - sent).min(self.frame_bytes_max).min(usize::try_from(window)?);
            let last = sent + bytes == message.len();
            headers.extend_from_slice(&head(bytes, frame::DATA, u8::from(last) * frame::FLAG_END, self.stream));
            write_both(&mut self.out, &headers, &message[sent..sent + bytes])?;
            headers.clear();
            sent += bytes;
            self.connection_window -= i64::try_from(bytes)?;
            self.stream_window -= i64::try_from(bytes)?;
        }
        let mut answer = Vec::new();
        loop {
            let (kind, flags, stream) = self.read_frame()?;
            if kind == frame::DATA {
                answer.extend_from_slice(&self.payload);
            }
            if stream == self.stream && matches!(kind, frame::DATA | frame::HEADERS) && flags & frame::FLAG_END != 0 {
                break;
            }
        }
        if answer != KEPT {
            return Err(format!("refused: {}", String::from_utf8_lossy(&answer)).into());
        }
        self.stream += 2;
        Ok(())
    }

    /// Reads a frame and does what it asks for; its payload stays in `payload`.
    fn read_frame(&mut self) -> Outcome<(u8, u8, u32)> {
        let mut head_bytes = [0; 9];
        self.input.read_exact(&mut head_bytes)?;
        let [l0, l1, l2, kind, flags, s0, s1, s2, s3] = head_bytes;
        let stream = u32::from_be_bytes([s0, s1, s2, s3]);
        self.payload.resize(u32::from_be_bytes([0, l0, l1, l2]).try_into()?, 0);
        self.input.read_exact(&mut self.payload)?;
        match kind {
            frame::SETTINGS if flags & frame::FLAG_END == 0 => {
                for setting in self.payload.chunks_exact(6) {
                    let value = u32::from_be_bytes(setting[2..].try_into()?);
                    match setting[..2] {
                        [0, 4] => self.initial_window = value.into(),
                        [0, 5] => self.frame_bytes_max = value.try_into()?,
                        _ => {}
                    }
                }
                self.out.write_all(&head(0, frame::SETTINGS, frame::FLAG_END, 0))?;
            }
            frame::PING if flags & frame::FLAG_END == 0 => {
                write_both(&mut self.out, &head(8, frame::PING, frame::FLAG_END, 0), &self.payload)?;
            }
            frame::WINDOW_UPDATE => {
                let bytes = u32::from_be_bytes(self.payload[..4].try_into()?);
                match stream {
                    0 => self.connection_window += i64::from(bytes),
                    stream if stream == self.stream => self.stream_window += i64::from(bytes),
                    _ => {}
                }
            }
            frame::RESET | frame::GO_AWAY => return Err("the server broke the call off".into()),
            _ => {}
        }
        Ok((kind, flags, stream))
    }
}

/// The 9 bytes before a frame's payload.
fn head(bytes: usize, kind: u8, flags: u8, stream: u32) -> [u8; 9] {
    let [.., l0, l1, l2] = bytes.to_be_bytes();
    let [s0, s1, s2, s3] = stream.to_be_bytes();
    [l0, l1, l2, kind, flags, s0, s1, s2, s3]
}

/// The request's header fields, none of them indexed (RFC 7541, section 6.2.2), so that they never change.
fn headers(address: &str) -> Vec<u8> {
    let mut block = vec![0x83, 0x86]; // POST, http
    let mut field = |name: &[u8], value: &str| {
        block.extend_from_slice(name);
        block.push(u8::try_from(value.len()).unwrap_or(0));
        block.extend_from_slice(value.as_bytes());
    };
    field(&[0x04], "/Table/Upload");
    field(&[0x01], address);
    field(&[0x0f, 0x10], "application/grpc");
    field(&[0x00, 2, b't', b'e'], "trailers");
    block
}

/// gRPC's prefix and field 1 of `UploadReq`.
fn message(csv: &[u8]) -> Outcome<Vec<u8>> {
    let mut field = vec![1 << 3 | 2];
    let mut length = csv.len();
    while length >= 0x80 {
        field.push(u8::try_from(length & 0x7f)? | 0x80);
        length >>= 7;
    }
    field.push(u8::try_from(length)?);
    let mut message = vec![0];
    message.extend_from_slice(&u32::try_from(field.len() + csv.len())?.to_be_bytes());
    message.extend_from_slice(&field);
    message.extend_from_slice(csv);
    Ok(message)
}

fn write_both(out: &mut TcpStream, first: &[u8], second: &[u8]) -> io::Result<()> {
    let mut slices = [IoSlice::new(first), IoSlice::new(second)];
    let mut left = &mut slices[..];
    while !left.is_empty() {
        let written = out.write_vectored(left)?;
        IoSlice::advance_slices(&mut left, written);
    }
    Ok(())
}

fn main() -> Outcome<()> {
    let args: Vec<String> = env::args().skip(1).collect();
    let [address, clients, uploads, files @ ..] = args.as_slice() else {
        return Err("usage: load_uploads HOST:PORT CLIENTS UPLOADS FILE...".into());
    };
    let (clients, uploads): (usize, usize) = (clients.parse()?, uploads.parse()?);
    let messages = files.iter().map(|file| message(&fs::read(file)?)).collect::<Outcome<Vec<_>>>()?;
    if messages.is_empty() {
        return Err("no file".into());
    }
    let mut connected = (0..clients).map(|_| Client::connect(address)).collect::<Outcome<Vec<_>>>()?;
    let next = AtomicUsize::new(0);
    let start = Instant::now();
    let mut times = thread::scope(|scope| {
        let run = |client: &mut Client| -> Outcome<Vec<Duration>> {
            let mut times = Vec::new();
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= uploads {
                    return Ok(times);
                }
                let begun = Instant::now();
                client.upload(&messages[index % messages.len()])?;
                times.push(begun.elapsed());
            }
        };
        let running: Vec<_> = connected.iter_mut().map(|client| scope.spawn(move || run(client))).collect();
        let mut times = Vec::new();
        for thread in running {
            times.append(&mut thread.join().map_err(|_panic| "a client panicked")??);
        }
        Ok::<_, Box<dyn Error + Send + Sync>>(times)
    })?;
    let seconds = start.elapsed().as_secs_f64();
    times.sort_unstable();
    let ms = |percent: usize| times.get(times.len() * percent / 100).map_or(0.0, Duration::as_secs_f64) * 1e3;
    println!(
        "{{\"clients\":{clients},\"uploads\":{uploads},\"seconds\":{seconds:.3},\"per_second\":{:.0},\
         \"p50_ms\":{:.3},\"p99_ms\":{:.3}}}",
        uploads as f64 / seconds,
        ms(50),
        ms(99)
    );
    Ok(())
}
