//! Writes the file of `--audit-log` on its own thread, which ends with the server. Lines wait in a bounded queue while the
//! disk is full or slow; what has no room there is lost, and counted. Another thread syncs the file, once a second while lines
//! are written, because a sync may take long.
//!
//! The rotation is not that of `--log-file`: the crate gives no handle to sync, and writes nowhere after some errors.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Write},
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TrySendError, bounded};

use crate::{
    access::audit::{Audit, Event, Message},
    config::LogFile,
    engine::state::lock_check::assert_unlocked,
    error::Error,
    limits::AUDIT_BATCH_BYTES,
};

/// Time between two syncs, and before what failed is tried again.
const SYNC_INTERVAL: Duration = Duration::from_secs(1);
/// How long the thread waits for more lines to write at once. Waking it for each line would slow every call down.
const BATCH_WAIT: Duration = Duration::from_millis(2);
/// How long the server waits for the last lines when it ends.
const END_MAX: Duration = Duration::from_secs(5);

/// The audit log. Dropping it writes and syncs what is in the queue, for at most [`END_MAX`].
pub(super) struct AuditLog {
    pub(super) audit: Audit,
    writer: Option<JoinHandle<()>>,
    /// Closed by the writer when it ends.
    ended: Receiver<()>,
}

impl AuditLog {
    /// Opens the file, and starts the threads.
    ///
    /// Errors: the file cannot be appended to; the system gives no threads.
    pub(super) fn start(settings: &LogFile) -> Result<Self, Error> {
        let path = settings.path.display();
        let file = RotatedFile::open(settings.clone()).map_err(Error::io(format!("--audit-log: {path}")))?;
        let (audit, receiver) = Audit::new();
        let ((syncs, files), (end, ended)) = (bounded(1), bounded(0));
        let writer = Writer {
            audit: audit.clone(),
            receiver,
            file,
            batch: Vec::new(),
            sync_at: None,
            syncs,
            lost_reported: 0,
            is_failing: false,
        };
        let named = |name: &str| thread::Builder::new().name(name.to_owned());
        let syncer = named("tally-audit-sync").spawn(move || sync(&files)).map_err(Error::io("threads"))?;
        let run = move || {
            writer.run();
            let _its_panic_was_logged = syncer.join();
            drop(end);
        };
        let writer = named("tally-audit").spawn(run).map_err(Error::io("threads"))?;
        Ok(Self { audit, writer: Some(writer), ended })
    }
}

impl Drop for AuditLog {
    fn drop(&mut self) {
        self.audit.stop();
        let Some(writer) = self.writer.take() else { return };
        writer.thread().unpark();
        match self.ended.recv_timeout(END_MAX) {
            Err(RecvTimeoutError::Timeout) => {
                tracing::error!("--audit-log: the last lines were not written within {} s", END_MAX.as_secs());
            }
            Ok(()) | Err(RecvTimeoutError::Disconnected) => {
                let _its_panic_was_logged = writer.join();
            }
        }
    }
}

/// Syncs what it is given, until nobody can give it more.
fn sync(files: &Receiver<Arc<File>>) {
    let mut is_failing = false;
    for file in files {
        assert_unlocked();
        match file.sync_data() {
            Ok(()) => is_failing = false,
            Err(error) if file.metadata().is_ok_and(|metadata| metadata.is_file()) => {
                if !std::mem::replace(&mut is_failing, true) {
                    tracing::error!(%error, "--audit-log: the file cannot be synced");
                }
            }
            Err(_no_file) => {}
        }
    }
}

struct Writer {
    audit: Audit,
    receiver: Receiver<Message>,
    file: RotatedFile,
    /// Lines that are written at once. While the disk fails, they stay here.
    batch: Vec<u8>,
    /// When to sync, if something was written since the last time.
    sync_at: Option<Instant>,
    syncs: Sender<Arc<File>>,
    /// The lost lines that the log tells of.
    lost_reported: u64,
    is_failing: bool,
}

impl Writer {
    fn run(mut self) {
        while !self.audit.is_stopping() {
            self.wait();
            self.take_all();
            if self.write() {
                self.tell_what_is_missing();
                self.sync_if_due();
            }
        }
        self.end();
    }

    /// Waits for a message, or until something is due.
    fn wait(&mut self) {
        if self.is_failing {
            return thread::park_timeout(SYNC_INTERVAL);
        }
        let message = match self.sync_at {
            Some(due) => self.receiver.recv_deadline(due),
            None => self.receiver.recv().map_err(|_closed| RecvTimeoutError::Disconnected),
        };
        if let Ok(message) = message {
            self.take(message);
            if !self.audit.is_stopping() {
                thread::sleep(BATCH_WAIT);
            }
        }
    }

    fn take_all(&mut self) {
        while self.batch.len() < AUDIT_BATCH_BYTES
            && let Ok(message) = self.receiver.try_recv()
        {
            self.take(message);
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Line(line) => {
                self.audit.taken(&line);
                self.batch.extend_from_slice(&line);
            }
            Message::Wake => self.sync_later(),
        }
    }

    fn sync_later(&mut self) {
        self.sync_at.get_or_insert_with(|| Instant::now() + SYNC_INTERVAL);
    }

    /// Writes the batch. If that fails, the batch is kept. Returns whether nothing is left.
    fn write(&mut self) -> bool {
        if self.batch.is_empty() {
            return true;
        }
        match self.file.append(&self.batch) {
            Ok(()) => {
                self.batch.clear();
                self.is_failing = false;
                self.sync_later();
            }
            Err(error) if !self.is_failing => {
                self.is_failing = true;
                tracing::error!(%error, "--audit-log: lines wait until the file can be written again, or are lost");
            }
            Err(_as_before) => {}
        }
        self.batch.is_empty()
    }

    fn add(&mut self, event: &Event) {
        self.batch.extend(Audit::line(event));
        self.write();
    }

    fn tell_what_is_missing(&mut self) {
        let lost = self.audit.lost();
        if lost > self.lost_reported {
            let lines = lost - self.lost_reported;
            tracing::error!(lines, "--audit-log: lines were lost, because the disk was too slow or failed");
            self.lost_reported = lost;
            self.add(&Event::LinesLost { lines });
        }
    }

    fn sync_if_due(&mut self) {
        if self.sync_at.is_none_or(|due| Instant::now() < due) {
            return;
        }
        let calls = self.audit.take_left_out();
        if calls > 0 {
            self.add(&Event::RefusalsLeftOut { calls });
        }
        self.sync_at = None;
        if matches!(self.syncs.try_send(self.file.handle()), Err(TrySendError::Full(_))) {
            self.sync_later(); // the last sync is still running
        }
    }

    /// Writes and syncs all that is left.
    fn end(mut self) {
        loop {
            self.take_all();
            if self.batch.is_empty() || !self.write() {
                break;
            }
        }
        let calls = self.audit.take_left_out();
        if calls > 0 && self.batch.is_empty() {
            self.add(&Event::RefusalsLeftOut { calls });
        }
        if self.batch.is_empty() {
            self.tell_what_is_missing();
        } else {
            let waiting = self.batch.iter().filter(|byte| **byte == b'\n').count() + self.receiver.len();
            tracing::error!(lines = waiting, "--audit-log: the last lines are lost");
        }
        let _the_syncer_is_there = self.syncs.send(self.file.handle());
    }
}

/// A file that is renamed to `PATH.1` when it is long, as `PATH.1` is to `PATH.2`, up to the number of files that are kept.
struct RotatedFile {
    settings: LogFile,
    file: Arc<File>,
    bytes: u64,
    /// Not a device or a pipe, which cannot be rotated or cut.
    is_regular: bool,
    /// It ends with the beginning of a line, which could not be cut off.
    is_cut: bool,
    /// The last rotation failed.
    is_stuck: bool,
}

impl RotatedFile {
    fn open(settings: LogFile) -> io::Result<Self> {
        assert_unlocked();
        fs::create_dir_all(folder(&settings.path))?;
        let file = open(&settings.path)?;
        let metadata = file.metadata()?;
        let (mut bytes, is_regular) = (metadata.len(), metadata.is_file());
        // A power failure may have left the beginning of a line.
        let mut last = [b'\n'];
        if is_regular && bytes > 0 {
            file.read_exact_at(&mut last, bytes - 1)?;
        }
        if last != [b'\n'] {
            (&file).write_all(b"\n")?;
            bytes += 1;
        }
        Ok(Self { settings, file: Arc::new(file), bytes, is_regular, is_cut: false, is_stuck: false })
    }

    /// The file as it is now, to be synced.
    fn handle(&self) -> Arc<File> {
        Arc::clone(&self.file)
    }

    /// Appends whole lines, all or none of them. If the file cannot be rotated, it becomes longer.
    fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        assert_unlocked();
        let bytes = lines.len() as u64;
        if self.is_regular && self.bytes > 0 && self.bytes + bytes > self.settings.bytes_max as u64 {
            match self.rotate() {
                Ok(()) => self.is_stuck = false,
                Err(error) => {
                    if !std::mem::replace(&mut self.is_stuck, true) {
                        tracing::error!(%error, "--audit-log: the file cannot be rotated, and goes on");
                    }
                }
            }
        }
        if std::mem::take(&mut self.is_cut) {
            (&*self.file).write_all(b"\n").inspect_err(|_| self.is_cut = true)?;
            self.bytes += 1;
        }
        if let Err(error) = (&*self.file).write_all(lines) {
            // A file to which the system only appends cannot be cut.
            if self.is_regular && self.file.set_len(self.bytes).is_err() {
                self.is_cut = true;
                self.bytes = self.file.metadata().map_or(self.bytes, |metadata| metadata.len());
            }
            return Err(error);
        }
        self.bytes += bytes;
        Ok(())
    }

    /// Nothing is renamed before there is a new file. If a file cannot be renamed, the next attempt goes on with it: those before
    /// the first number that no file has are renamed, so that no attempt pushes one out without adding one.
    fn rotate(&mut self) -> io::Result<()> {
        assert_unlocked();
        let path = &self.settings.path;
        let fresh = suffixed(path, "new");
        let file = open(&fresh)?;
        self.file.sync_data()?;
        let kept = self.settings.files_kept;
        let last = (1..=kept).find(|number| !suffixed(path, &number.to_string()).exists()).unwrap_or(kept);
        for number in (1..=last).rev() {
            let from = if number == 1 { path.clone() } else { suffixed(path, &(number - 1).to_string()) };
            match fs::rename(from, suffixed(path, &number.to_string())) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            }
        }
        fs::rename(fresh, path)?;
        self.file = Arc::new(file);
        self.bytes = 0;
        File::open(folder(path))?.sync_all()
    }
}

fn open(path: &Path) -> io::Result<File> {
    assert_unlocked();
    let file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)?;
    let metadata = file.metadata()?;
    if metadata.is_file() && metadata.mode() & 0o077 != 0 {
        // It was there before, and would show others who calls.
        file.set_permissions(Permissions::from_mode(0o600))?;
    }
    Ok(file)
}

/// The folder of an absolute path.
fn folder(path: &Path) -> &Path {
    path.parent().unwrap_or(path)
}

fn suffixed(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(folder: &Path, files_kept: usize) -> LogFile {
        LogFile { path: folder.join("a"), bytes_max: 10, files_kept }
    }

    fn read(path: &Path) -> String {
        fs::read_to_string(path).expect("a file")
    }

    #[test]
    fn the_newest_files_are_kept_and_no_line_is_cut() {
        let folder = tempfile::tempdir().expect("a folder");
        let settings = settings(folder.path(), 2);
        let path = settings.path.clone();
        let mut file = RotatedFile::open(settings.clone()).expect("a file");
        for line in ["1234567\n", "2\n", "3\n", "longer than a file\n", "4\n"] {
            file.append(line.as_bytes()).expect("written");
        }
        let texts = [path.clone(), suffixed(&path, "1"), suffixed(&path, "2")].map(|path| read(&path));
        assert_eq!(texts, ["4\n", "longer than a file\n", "3\n"]);
        assert!(!suffixed(&path, "3").exists() && !suffixed(&path, "new").exists());
        // It goes on where it ended, also after another file was put in its place or it was moved away.
        drop(file);
        let mut file = RotatedFile::open(settings).expect("a file");
        file.append(b"5\n").expect("written");
        assert_eq!(read(&path), "4\n5\n");
        fs::rename(&path, folder.path().join("moved")).expect("moved");
        file.append(b"1234567\n").expect("written");
        assert_eq!(read(&path), "1234567\n");
    }

    #[test]
    fn a_file_that_cannot_be_rotated_becomes_longer() {
        let folder = tempfile::tempdir().expect("a folder");
        let settings = settings(folder.path(), 1);
        let (path, in_the_way) = (settings.path.clone(), suffixed(&settings.path, "1"));
        fs::create_dir_all(in_the_way.join("x")).expect("a folder");
        let mut file = RotatedFile::open(settings).expect("a file");
        for line in ["12345678\n", "2\n", "3\n"] {
            file.append(line.as_bytes()).expect("written");
        }
        assert_eq!((read(&path).as_str(), file.is_stuck), ("12345678\n2\n3\n", true));
        fs::remove_dir_all(&in_the_way).expect("removed");
        file.append(b"4\n").expect("written");
        assert_eq!((read(&path).as_str(), read(&in_the_way).as_str()), ("4\n", "12345678\n2\n3\n"));
        assert!(!file.is_stuck);
    }

    /// As after an attempt that has renamed all files but the last.
    #[test]
    fn an_attempt_to_rotate_goes_on_where_the_one_before_ended() {
        let folder = tempfile::tempdir().expect("a folder");
        let settings = settings(folder.path(), 3);
        let path = settings.path.clone();
        let files = [path.clone(), suffixed(&path, "1"), suffixed(&path, "2"), suffixed(&path, "3")];
        for (file, text) in [(0, "new\n"), (2, "older\n"), (3, "oldest\n")] {
            fs::write(&files[file], text).expect("written");
        }
        let mut file = RotatedFile::open(settings).expect("a file");
        for (line, expected) in [
            ("1234567\n", ["1234567\n", "new\n", "older\n", "oldest\n"]),
            ("2345678\n", ["2345678\n", "1234567\n", "new\n", "older\n"]),
        ] {
            file.append(line.as_bytes()).expect("written");
            assert_eq!(files.each_ref().map(|path| read(path)), expected);
        }
    }

    #[test]
    fn nobody_else_may_read_a_file_that_was_there_before() {
        let folder = tempfile::tempdir().expect("a folder");
        let settings = settings(folder.path(), 3);
        fs::write(&settings.path, "").expect("written");
        fs::set_permissions(&settings.path, Permissions::from_mode(0o644)).expect("its owner's");
        let path = settings.path.clone();
        RotatedFile::open(settings).expect("a file");
        assert_eq!(fs::metadata(path).expect("a file").mode() & 0o777, 0o600);
    }

    #[test]
    fn dropping_the_log_writes_what_was_handed_over() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("deep/a");
        let log = AuditLog::start(&LogFile { path: path.clone(), bytes_max: 1 << 30, files_kept: 1 }).expect("threads");
        (0..1000).for_each(|part| log.audit.event(Event::Loaded { part }));
        drop(log);
        let text = read(&path);
        assert_eq!(text.lines().count(), 1000);
        assert!(text.ends_with("\"event\":\"loaded\",\"part\":999}\n"), "{text}");
    }
}
