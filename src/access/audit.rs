//! What the audit log says: a JSON object in a line for each call, each refusal, and each change of who may call.
//!
//! A call hands its line to a bounded queue and never waits. `server/audit_file.rs` has the other end. Without `--audit-log`
//! there is no [`Audit`], and a call does nothing for it. No line has a secret, a query, or content of the table.

use std::{
    fmt,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Instant,
};

use chrono::{SecondsFormat, Utc};
use crossbeam_channel::{Receiver, Sender, bounded};
use http::Extensions;
use serde::{Serialize, Serializer};

use super::{
    identity::Name,
    rules::{Rule, of_call},
};
use crate::limits::{AUDIT_LINES_MAX, AUDIT_QUEUE_BYTES_MAX, AUDIT_REFUSALS_PER_S_MAX, AUDIT_TEXT_BYTES_MAX};

/// The sending end of the queue; clones share it.
#[derive(Clone)]
pub(crate) struct Audit(Arc<Inner>);

struct Inner {
    sender: Sender<Message>,
    started: Instant,
    /// Bytes of the lines in the queue.
    bytes: AtomicUsize,
    /// Lines that were not written, over all time.
    lost: AtomicU64,
    /// Lines in this second that are limited, of callers with a known token and of all others: those who have none must not use up
    /// the lines of those who have one.
    limited: [PerSecond; 2],
    /// Calls without a line since the last line that counts them.
    left_out: AtomicU64,
    is_stopping: AtomicBool,
}

/// What the queue holds.
pub(crate) enum Message {
    Line(Box<[u8]>),
    /// Calls were left out, which the log has to tell, or the server stops.
    Wake,
}

/// How a call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Outcome {
    Ok,
    /// Its caller may not make it, or not now.
    Refused,
    /// It failed, or what it asks for is wrong.
    Error,
    /// The client did not wait for the answer. A change may have been made.
    Cancelled,
}

/// What a line is about, besides calls.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(crate) enum Event {
    /// The server is ready. How many tokens it has, and whether it uses TLS.
    Started {
        version: &'static str,
        tokens: Option<usize>,
        tls: bool,
    },
    /// A file of `--load` was added.
    Loaded {
        part: u64,
    },
    /// SIGHUP: the tokens were replaced, or stay because the file is wrong.
    TokensReread {
        outcome: Outcome,
        tokens: Option<usize>,
        error: Option<String>,
    },
    CertificatesReread {
        outcome: Outcome,
        error: Option<String>,
    },
    /// The server was told to stop, and takes no more calls.
    Draining,
    Stopped,
    /// Calls that have no line, because there were too many in a second: refused ones, and those of callers without a token.
    RefusalsLeftOut {
        calls: u64,
    },
    /// Lines that could not be written.
    LinesLost {
        lines: u64,
    },
}

/// An event or a call, at a time.
#[derive(Serialize)]
struct Timed<T> {
    time: String,
    #[serde(flatten)]
    what: T,
}

/// An upload that was stored.
#[derive(Clone, Copy)]
pub(crate) struct Added {
    pub(crate) part: u64,
    pub(crate) rows: u64,
    /// Bytes of its CSV.
    pub(crate) bytes: u64,
    /// It was added before, with the same key.
    pub(crate) replayed: bool,
}

impl Audit {
    /// A queue, and the end that the writer reads.
    pub(crate) fn new() -> (Self, Receiver<Message>) {
        let (sender, receiver) = bounded(AUDIT_LINES_MAX);
        let inner = Inner {
            sender,
            started: Instant::now(),
            bytes: AtomicUsize::new(0),
            lost: AtomicU64::new(0),
            limited: [PerSecond::default(), PerSecond::default()],
            left_out: AtomicU64::new(0),
            is_stopping: AtomicBool::new(false),
        };
        (Self(Arc::new(inner)), receiver)
    }

    /// Whether a call has a line. Those of NumStore have none unless they are refused: they change nothing that is stored, and
    /// thousands a second would rotate the lines about the table away. Nor have probes, which anyone may send.
    pub(crate) fn takes(path: &str, is_refused: bool) -> bool {
        is_refused || !(path.starts_with("/NumStore/") || of_call(path) == Some(Rule::Open))
    }

    /// A call that begins. Those of a stranger, who has no token though there are some, have few lines, whatever their outcome.
    pub(crate) fn call(
        &self,
        call: impl fmt::Display,
        token: Option<Name>,
        address: Option<SocketAddr>,
        is_stranger: bool,
    ) -> AuditedCall {
        AuditedCall(Arc::new(Call {
            audit: self.clone(),
            call: shortened(&call.to_string()).into(),
            token,
            address,
            is_stranger,
            started: Instant::now(),
            part: AtomicU64::new(0),
            has_failed: AtomicBool::new(false),
            has_line: AtomicBool::new(false),
        }))
    }

    pub(crate) fn event(&self, event: Event) {
        self.push(&event);
    }

    /// The line of an event, for the writer itself.
    pub(crate) fn line(event: &Event) -> Vec<u8> {
        line(event).unwrap_or_default()
    }

    /// Ends the writer, when it has written what is in the queue.
    pub(crate) fn stop(&self) {
        self.0.is_stopping.store(true, Ordering::Relaxed);
        let _awake_if_it_is_full = self.0.sender.try_send(Message::Wake);
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.0.is_stopping.load(Ordering::Relaxed)
    }

    /// A line was taken out of the queue.
    pub(crate) fn taken(&self, line: &[u8]) {
        self.0.bytes.fetch_sub(cost(line), Ordering::Relaxed);
    }

    /// Lines that were not written.
    pub(crate) fn lost(&self) -> u64 {
        self.0.lost.load(Ordering::Relaxed)
    }

    /// Lines could not be written.
    pub(crate) fn lose(&self, lines: u64) {
        self.0.lost.fetch_add(lines, Ordering::Relaxed);
    }

    /// Calls without a line, since this was asked before.
    pub(crate) fn take_left_out(&self) -> u64 {
        self.0.left_out.swap(0, Ordering::Relaxed)
    }

    /// Whether a call may have a line of those that are limited; otherwise it is counted.
    fn has_room(&self, is_known: bool) -> bool {
        let second = self.0.started.elapsed().as_secs();
        if self.0.limited[usize::from(is_known)].add(second, AUDIT_REFUSALS_PER_S_MAX) {
            return true;
        }
        if self.0.left_out.fetch_add(1, Ordering::Relaxed) == 0 {
            let _awake_anyway = self.0.sender.try_send(Message::Wake);
        }
        false
    }

    fn push(&self, what: &impl Serialize) {
        let Some(line) = line(what) else { return self.lose(1) };
        let line = line.into_boxed_slice();
        let bytes = cost(&line);
        let has_room = self.0.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes <= AUDIT_QUEUE_BYTES_MAX;
        if !has_room || self.0.sender.try_send(Message::Line(line)).is_err() {
            self.0.bytes.fetch_sub(bytes, Ordering::Relaxed);
            self.lose(1);
        }
    }
}

/// Bytes of a line in the queue.
fn cost(line: &[u8]) -> usize {
    line.len() + size_of::<Message>()
}

fn line(what: &impl Serialize) -> Option<Vec<u8>> {
    let time = Utc::now().to_rfc3339_opts(SecondsFormat::Micros, true);
    let mut line = serde_json::to_vec(&Timed { time, what }).ok()?;
    line.push(b'\n');
    Some(line)
}

/// The beginning of a text from a client.
pub(super) fn shortened(text: &str) -> &str {
    let mut end = text.len().min(AUDIT_TEXT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// A count that begins anew each second. The upper half is the second, the lower one the count.
#[derive(Default)]
struct PerSecond(AtomicU64);

impl PerSecond {
    /// Counts one more, unless there were `max` in this second.
    fn add(&self, second: u64, max: u64) -> bool {
        const COUNT_MAX: u64 = u32::MAX as u64;
        let second = second & COUNT_MAX;
        let more = |before: u64| {
            let count = if before >> 32 == second { before & COUNT_MAX } else { 0 };
            (count < max).then_some(second << 32 | (count + 1))
        };
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }
}

/// A call that leaves a line when it ends; clones are the same call. It is in the extensions of the request, so that the
/// handler can add what it knows.
#[derive(Clone)]
pub(crate) struct AuditedCall(Arc<Call>);

struct Call {
    audit: Audit,
    /// A path of gRPC, or method and path of HTTP.
    call: Box<str>,
    /// The name of its token.
    token: Option<Name>,
    address: Option<SocketAddr>,
    is_stranger: bool,
    started: Instant,
    /// The part that it is about; 0 if there is none.
    part: AtomicU64,
    /// It failed, though its status is the one of a success.
    has_failed: AtomicBool,
    /// Its success has its lines.
    has_line: AtomicBool,
}

#[derive(Serialize)]
#[serde(tag = "event", rename = "call")]
struct CallLine<'a> {
    token: Option<&'a str>,
    #[serde(serialize_with = "as_text")]
    address: Option<SocketAddr>,
    call: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    part: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rows: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    replayed: Option<bool>,
    outcome: Outcome,
    /// gRPC's code, or the status of HTTP.
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<&'a str>,
    ms: u64,
}

fn as_text<S: Serializer>(address: &Option<SocketAddr>, serializer: S) -> Result<S::Ok, S::Error> {
    match address {
        Some(address) => serializer.collect_str(address),
        None => serializer.serialize_none(),
    }
}

impl AuditedCall {
    /// The call has ended.
    pub(crate) fn end(&self, outcome: Outcome, code: &str) {
        let call = &self.0;
        let has_failed = outcome == Outcome::Ok && call.has_failed.load(Ordering::Relaxed);
        let outcome = if has_failed { Outcome::Error } else { outcome };
        // An upload that was added has its line, whether or not its client still heard of it.
        if call.has_line.load(Ordering::Relaxed) && matches!(outcome, Outcome::Ok | Outcome::Cancelled) {
            return;
        }
        let is_limited = call.is_stranger || outcome == Outcome::Refused;
        if is_limited && !call.audit.has_room(call.token.is_some()) {
            return;
        }
        self.tell(None, outcome, Some(code));
    }

    fn tell(&self, added: Option<Added>, outcome: Outcome, code: Option<&str>) {
        let call = &self.0;
        let part = Some(call.part.load(Ordering::Relaxed)).filter(|part| *part > 0);
        call.audit.push(&CallLine {
            token: call.token.as_deref(),
            address: call.address,
            call: &call.call,
            part: added.map(|added| added.part).or(part),
            rows: added.map(|added| added.rows),
            bytes: added.map(|added| added.bytes),
            replayed: added.map(|added| added.replayed).filter(|replayed| *replayed),
            outcome,
            code,
            ms: u64::try_from(call.started.elapsed().as_millis()).unwrap_or(u64::MAX),
        });
    }
}

/// The call of this request is about a part.
pub(crate) fn about_part(request: &Extensions, part: u64) {
    if let Some(AuditedCall(call)) = request.get() {
        call.part.store(part, Ordering::Relaxed);
    }
}

/// The call of this request failed, and its answer says so in a way of its own.
pub(crate) fn failed(request: &Extensions) {
    if let Some(AuditedCall(call)) = request.get() {
        call.has_failed.store(true, Ordering::Relaxed);
    }
}

/// An upload of this request was stored. It has a line: a form may have several.
pub(crate) fn added(request: &Extensions, added: Added) {
    if let Some(call) = request.get::<AuditedCall>() {
        call.0.has_line.store(true, Ordering::Relaxed);
        call.tell(Some(added), Outcome::Ok, None);
    }
}

#[cfg(test)]
#[path = "audit_tests.rs"]
mod tests;
