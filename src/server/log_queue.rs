//! The queue of log lines for standard error, which a separate thread writes. A caller that logs never waits: if nobody
//! reads standard error, lines are dropped and counted.
//!
//! That thread also replaces many similar lines with a summary, so that no client can make the log grow without bound.
//! Lines are similar if they are about the same call of the same client or, without a client, if they are equal.

use std::{
    cell::Cell,
    collections::HashMap,
    fmt::{self, Write as _},
    hash::{DefaultHasher, Hash, Hasher},
    io::{self, Write},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter, format::Writer},
    registry::LookupSpan,
};

use crate::{
    api::metrics::LogCounts,
    engine::state::transfers::one_client,
    limits::{
        LOG_BATCH_BYTES, LOG_GROUPS_MAX, LOG_LINES_PER_GROUP_MAX, LOG_QUEUE_BYTES_MAX, LOG_QUEUE_LINES_MAX,
        STDERR_LINE_BYTES_MAX,
    },
};

/// The interval in which similar lines are counted together.
const WINDOW: Duration = Duration::from_secs(10);
/// How long the thread waits for more lines to write at once. Waking it for each line would slow every call down.
const BATCH_WAIT: Duration = Duration::from_millis(2);
/// How long a flush waits for standard error.
const FLUSH_MAX: Duration = Duration::from_secs(1);

/// The sending side of the queue; clones share it.
#[derive(Clone)]
pub(super) struct LogQueue {
    sender: Sender<Message>,
    /// Bytes of the lines in the queue.
    bytes: Arc<AtomicUsize>,
    counts: LogCounts,
    /// Whether lines are JSON, which must not be cut.
    is_json: bool,
}

enum Message {
    Line(Line),
    /// A request to write all lines before it, and then to answer.
    Flush(Sender<()>),
}

struct Line {
    group: Group,
    text: Box<[u8]>,
}

impl LogQueue {
    /// Starts the thread that writes to `out`. Errors: the system gives no thread.
    pub(super) fn start(out: impl Write + Send + 'static, is_json: bool, counts: LogCounts) -> io::Result<Self> {
        let (sender, receiver) = bounded(LOG_QUEUE_LINES_MAX);
        let queue = Self { sender, bytes: Arc::default(), counts, is_json };
        let (bytes, counts) = (Arc::clone(&queue.bytes), queue.counts.clone());
        let writer =
            LineWriter { out, receiver, bytes, counts, groups: HashMap::new(), batch: Vec::new(), dropped_reported: 0 };
        thread::Builder::new().name("tally-log".to_owned()).spawn(move || writer.run())?;
        Ok(queue)
    }

    /// Waits until all lines before are written, for a second at most.
    pub(super) fn flush(&self) {
        let (done, flushed) = bounded(1);
        if self.sender.send_timeout(Message::Flush(done), FLUSH_MAX).is_ok() {
            let _flushed_or_stuck = flushed.recv_timeout(FLUSH_MAX);
        }
    }

    fn push(&self, group: Group, text: &[u8]) {
        let text = self.bounded(text);
        let line = Line { group, text };
        let bytes = line.bytes();
        let has_room = self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes <= LOG_QUEUE_BYTES_MAX;
        if !has_room || self.sender.try_send(Message::Line(line)).is_err() {
            self.bytes.fetch_sub(bytes, Ordering::Relaxed);
            self.counts.dropped.inc();
        }
    }

    fn bounded(&self, text: &[u8]) -> Box<[u8]> {
        const END: &[u8] = "…\n".as_bytes();
        if text.len() <= STDERR_LINE_BYTES_MAX {
            return text.into();
        }
        if self.is_json {
            let bytes = text.len();
            let line = format!("{{\"level\":\"WARN\",\"message\":\"a log line of {bytes} bytes is left out\"}}\n");
            return line.into_bytes().into();
        }
        let text = &text[..STDERR_LINE_BYTES_MAX - END.len()];
        // Not in the middle of a character.
        let end = str::from_utf8(text).map_or_else(|error| error.valid_up_to(), str::len);
        [&text[..end], END].concat().into()
    }
}

impl Line {
    fn bytes(&self) -> usize {
        size_of::<Message>() + self.text.len() + self.group.description.len()
    }
}

/// The lines that a line is similar to.
#[derive(Clone)]
struct Group {
    key: u64,
    level: Level,
    /// Whether a client caused the line.
    of_client: bool,
    /// What the lines have in common, for their summary.
    description: Box<str>,
}

thread_local! {
    /// The group of the event that this thread is formatting.
    static GROUP: Cell<Option<Group>> = const { Cell::new(None) };
}

/// Formats events as `F` does, and stores the group of each for the [`LogQueue`] that takes its line.
pub(super) struct Classified<F>(pub(super) F);

impl<S, N, F> FormatEvent<S, N> for Classified<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        GROUP.set(Some(Group::of(event)));
        self.0.format_event(context, writer, event)
    }
}

impl Group {
    fn of(event: &Event<'_>) -> Self {
        let metadata = event.metadata();
        let mut fields = Fields { all: DefaultHasher::new(), call: String::new(), peer: None, message: String::new() };
        metadata.callsite().hash(&mut fields.all);
        event.record(&mut fields);
        let Fields { all, call, peer, message } = fields;
        let Some(peer) = peer else {
            return Self { key: all.finish(), level: *metadata.level(), of_client: false, description: message.into() };
        };
        let mut key = DefaultHasher::new();
        (metadata.callsite(), &call, one_client(peer.ip())).hash(&mut key);
        let space = if call.is_empty() { "" } else { " " };
        let description = format!("{message}: {call}{space}of {}", peer.ip());
        Self { key: key.finish(), level: *metadata.level(), of_client: true, description: description.into() }
    }
}

/// The fields of an event that decide its group.
struct Fields {
    /// A hash of the names and values of all fields.
    all: DefaultHasher,
    call: String,
    peer: Option<SocketAddr>,
    message: String,
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "call" {
            value.clone_into(&mut self.call);
        }
        (field.name(), value).hash(&mut self.all);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let mut text = String::new();
        let _a_string_takes_it = write!(text, "{value:?}");
        (field.name(), &text).hash(&mut self.all);
        match field.name() {
            "message" => self.message = text,
            "peer" => self.peer = text.parse().ok(),
            _ => {}
        }
    }
}

impl<'a> MakeWriter<'a> for LogQueue {
    type Writer = OneLine<'a>;

    fn make_writer(&'a self) -> OneLine<'a> {
        let unknown = || Group { key: 0, level: Level::INFO, of_client: false, description: Box::default() };
        OneLine { queue: self, group: GROUP.take().unwrap_or_else(unknown) }
    }

    fn make_writer_for(&'a self, _metadata: &Metadata<'_>) -> OneLine<'a> {
        self.make_writer()
    }
}

/// Writes one whole line to the queue.
pub(super) struct OneLine<'a> {
    queue: &'a LogQueue,
    group: Group,
}

impl Write for OneLine<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.queue.push(self.group.clone(), line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The thread's side of the queue: writes lines and counts similar ones.
struct LineWriter<W> {
    out: W,
    receiver: Receiver<Message>,
    bytes: Arc<AtomicUsize>,
    counts: LogCounts,
    groups: HashMap<u64, GroupCount>,
    /// Lines that are written at once.
    batch: Vec<u8>,
    /// How many dropped lines the log has reported.
    dropped_reported: u64,
}

/// Lines of one group since `started`.
struct GroupCount {
    started: Instant,
    written: usize,
    /// Lines that were not written.
    suppressed: u64,
    level: Level,
    description: Box<str>,
}

impl<W: Write> LineWriter<W> {
    fn run(mut self) {
        loop {
            let first = match self.next_end() {
                Some(end) => self.receiver.recv_deadline(end),
                None => self.receiver.recv().map_err(|_closed| RecvTimeoutError::Disconnected),
            };
            match first {
                Ok(Message::Line(line)) => {
                    self.take(line);
                    thread::sleep(BATCH_WAIT);
                }
                Ok(Message::Flush(done)) => self.flush(done),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            self.write_all_that_came();
            self.write_summaries(Instant::now());
            self.report_dropped_lines();
        }
    }

    /// When the next summary is due.
    fn next_end(&self) -> Option<Instant> {
        self.groups.values().map(|count| count.started + WINDOW).min()
    }

    fn write_all_that_came(&mut self) {
        while let Ok(message) = self.receiver.try_recv() {
            match message {
                Message::Line(line) => self.take(line),
                Message::Flush(done) => self.flush(done),
            }
        }
        self.write_batch();
    }

    /// Writes the summaries, and then all lines.
    fn flush(&mut self, done: Sender<()>) {
        let mut all_done = vec![done];
        self.write_summaries(Instant::now() + WINDOW);
        while let Ok(message) = self.receiver.try_recv() {
            match message {
                Message::Line(line) => self.take(line),
                Message::Flush(done) => all_done.push(done),
            }
        }
        self.write_batch();
        for done in all_done {
            let _still_awaited = done.try_send(());
        }
    }

    fn take(&mut self, line: Line) {
        self.bytes.fetch_sub(line.bytes(), Ordering::Relaxed);
        if !self.is_suppressed(&line.group) {
            self.batch.extend_from_slice(&line.text);
            if self.batch.len() >= LOG_BATCH_BYTES {
                self.write_batch();
            }
        }
    }

    /// Counts a line, and returns whether it is left to the summary.
    fn is_suppressed(&mut self, group: &Group) -> bool {
        let has_room = self.groups.len() < LOG_GROUPS_MAX || self.groups.contains_key(&group.key);
        match (has_room, group.of_client) {
            (true, _) => self.count(group),
            // All clients above the limit share one group.
            (false, true) => {
                self.count(&Group { key: 0, description: "lines of many clients".into(), ..group.clone() })
            }
            // No client caused it, so there are few such lines.
            (false, false) => false,
        }
    }

    fn count(&mut self, group: &Group) -> bool {
        let count = self.groups.entry(group.key).or_insert_with(|| GroupCount {
            started: Instant::now(),
            written: 0,
            suppressed: 0,
            level: group.level,
            description: group.description.clone(),
        });
        if count.written < LOG_LINES_PER_GROUP_MAX {
            count.written += 1;
            return false;
        }
        count.suppressed += 1;
        self.counts.suppressed.inc();
        true
    }

    /// Logs how many lines were suppressed, for each group whose interval is over.
    fn write_summaries(&mut self, now: Instant) {
        self.groups.retain(|_, count| {
            let is_over = now.saturating_duration_since(count.started) >= WINDOW;
            if is_over && count.suppressed > 0 {
                let GroupCount { suppressed, description: similar_to, .. } = count;
                let seconds = WINDOW.as_secs();
                match count.level {
                    Level::ERROR => {
                        tracing::error!(%similar_to, "{suppressed} more lines like this in the last {seconds} s")
                    }
                    Level::WARN => {
                        tracing::warn!(%similar_to, "{suppressed} more lines like this in the last {seconds} s")
                    }
                    _ => tracing::info!(%similar_to, "{suppressed} more lines like this in the last {seconds} s"),
                }
            }
            !is_over
        });
    }

    fn report_dropped_lines(&mut self) {
        let dropped = self.counts.dropped.get();
        // While the queue is full, this line would be dropped too.
        if dropped > self.dropped_reported && self.receiver.len() < LOG_QUEUE_LINES_MAX / 2 {
            tracing::warn!(
                lines = dropped - self.dropped_reported,
                "log lines were dropped: standard error did not take them in time"
            );
            self.dropped_reported = dropped;
        }
    }

    fn write_batch(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        let written = self.out.write_all(&self.batch).and_then(|()| self.out.flush());
        if written.is_err() {
            // It cannot be reported anywhere: the reader is gone.
            let lines = self.batch.iter().filter(|byte| **byte == b'\n').count() as u64;
            self.counts.dropped.inc_by(lines);
            self.dropped_reported += lines;
        }
        self.batch.clear();
    }
}

#[cfg(test)]
mod tests {
    use crate::limits::KIB;

    use super::*;

    /// A queue whose lines nobody takes.
    fn queue(is_json: bool) -> (LogQueue, Receiver<Message>) {
        let (sender, receiver) = bounded(LOG_QUEUE_LINES_MAX);
        (LogQueue { sender, bytes: Arc::default(), counts: LogCounts::default(), is_json }, receiver)
    }

    fn group(key: u64) -> Group {
        Group { key, level: Level::DEBUG, of_client: true, description: "that".into() }
    }

    #[test]
    fn a_full_queue_drops_lines_and_counts_them() {
        for (line_bytes, kept) in [(1, LOG_QUEUE_LINES_MAX), (STDERR_LINE_BYTES_MAX, LOG_QUEUE_BYTES_MAX / KIB / 9)] {
            let (queue, receiver) = queue(false);
            (0..2000).for_each(|key| queue.push(group(key), &vec![b'x'; line_bytes]));
            let lost = usize::try_from(queue.counts.dropped.get()).expect("few");
            assert_eq!(receiver.len() + lost, 2000);
            assert!(receiver.len() >= kept, "{} lines of {line_bytes} bytes", receiver.len());
            assert!(queue.bytes.load(Ordering::Relaxed) <= LOG_QUEUE_BYTES_MAX);
        }
    }

    #[test]
    fn a_long_line_is_cut_between_two_characters_and_json_is_not_cut() {
        let line = format!("{}\n", "é漢\u{10ffff}".repeat(STDERR_LINE_BYTES_MAX));
        for shift in 0..9 {
            let cut = queue(false).0.bounded(&[&b"xxxxxxxxx"[..shift], line.as_bytes()].concat());
            let text = str::from_utf8(&cut).expect("whole characters");
            assert!(text.ends_with("…\n") && cut.len() <= STDERR_LINE_BYTES_MAX);
            assert!(cut.len() > STDERR_LINE_BYTES_MAX - 8, "{}", cut.len());
        }
        let text = queue(true).0.bounded(line.as_bytes());
        let json: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
        assert_eq!(json["message"], format!("a log line of {} bytes is left out", line.len()));
    }

    #[test]
    fn similar_lines_are_suppressed_and_the_groups_are_bounded() {
        let (queue, receiver) = queue(false);
        let (bytes, counts) = (Arc::clone(&queue.bytes), queue.counts.clone());
        let (groups, batch) = (HashMap::new(), Vec::new());
        let mut writer = LineWriter { out: Vec::new(), receiver, bytes, counts, groups, batch, dropped_reported: 0 };
        let lines = |writer: &mut LineWriter<Vec<u8>>| {
            writer.write_all_that_came();
            let text = String::from_utf8(std::mem::take(&mut writer.out)).expect("text");
            text.lines().map(str::to_owned).collect::<Vec<_>>()
        };
        for number in 0..100 {
            queue.push(group(1), format!("one {number}\n").as_bytes());
        }
        queue.push(group(2), b"another\n");
        let written = lines(&mut writer);
        assert_eq!(written.len(), LOG_LINES_PER_GROUP_MAX + 1);
        assert_eq!((written[0].as_str(), written[LOG_LINES_PER_GROUP_MAX].as_str()), ("one 0", "another"));
        assert_eq!((writer.groups[&1].suppressed, writer.counts.suppressed.get()), (80, 80));
        assert!(writer.next_end().is_some_and(|end| end <= Instant::now() + WINDOW));
        writer.write_summaries(Instant::now());
        assert_eq!(writer.groups.len(), 2, "their interval is not over");
        writer.write_summaries(Instant::now() + WINDOW);
        assert_eq!((writer.groups.len(), writer.next_end()), (0, None));
        assert_eq!(queue.bytes.load(Ordering::Relaxed), 0);

        for round in 0..20 {
            (0..500).for_each(|key| queue.push(group(500 * round + key), b"from one of ten thousand\n"));
            let _counted_below = lines(&mut writer);
        }
        assert!(writer.groups.len() <= LOG_GROUPS_MAX + 1);
        assert_eq!(writer.groups[&0].written, LOG_LINES_PER_GROUP_MAX);
        for number in 0..100 {
            queue.push(Group { of_client: false, ..group(1_000_000 + number) }, b"the server's own\n");
        }
        assert_eq!(lines(&mut writer).len(), 100, "lines of the server itself are not suppressed");

        let ((first, first_done), (second, second_done)) = (bounded(1), bounded(1));
        queue.sender.send(Message::Flush(first)).expect("room");
        queue.sender.send(Message::Flush(second)).expect("room");
        assert_eq!(lines(&mut writer).len(), 0);
        assert!(first_done.try_recv().is_ok() && second_done.try_recv().is_ok(), "both are answered");
    }

    #[test]
    fn a_flush_writes_all_lines_and_does_not_wait_for_a_writer_that_hangs() {
        struct Hangs(Receiver<()>);
        impl Write for Hangs {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                let _until_the_test_ends = self.0.recv();
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (hold, held) = bounded(1);
        let queue = LogQueue::start(Hangs(held), false, LogCounts::default()).expect("a thread");
        queue.push(group(1), b"a line\n");
        queue.flush(); // it returns
        drop(hold);
        queue.flush();
        assert_eq!((queue.counts.dropped.get(), queue.bytes.load(Ordering::Relaxed)), (0, 0));
    }
}
