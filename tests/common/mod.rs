//! What the tests of the engine share: data folders, an engine on one of them, uploads, and waiting.
#![allow(dead_code, reason = "no test program uses all of it")]

use std::{
    fs,
    ops::Deref,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::stream;
use tally::{
    engine::{
        Durability, Engine,
        runtime::part_engine::Cluster,
        survey::question::{Ask, SurveyQuestion},
    },
    error::Error,
    limits::{Limits, RECEIPTS_PAGE_BYTES},
    model::part::{PartId, Receipt},
};
use tempfile::TempDir;
use tokio::time::timeout;

/// How long a test waits for something before it fails.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// A data folder, which is removed when the test ends.
pub(crate) struct DataFolder(TempDir);

impl DataFolder {
    pub(crate) fn new() -> Self {
        Self(TempDir::new().expect("a temporary folder"))
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    /// The path of a file in the data folder, for example `parts/1.csv`.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// The names of the files in a folder of the data folder, in order.
    pub(crate) fn names_in(&self, folder: &str) -> Vec<String> {
        let entries = fs::read_dir(self.file(folder)).expect("readable");
        let name = |entry: std::io::Result<fs::DirEntry>| entry.expect("an entry").file_name();
        let mut names: Vec<_> = entries.map(|entry| name(entry).into_string().expect("text")).collect();
        names.sort();
        names
    }

    /// Starts an engine that does not sync, with the default limits.
    pub(crate) async fn open(&self) -> TestEngine {
        self.open_with(Durability::None, Limits::default()).await
    }

    /// Starts an engine. If another one had the folder, it waits until the last task of that one has ended.
    pub(crate) async fn open_with(&self, durability: Durability, limits: Limits) -> TestEngine {
        self.open_as(durability, limits, None).await
    }

    /// Starts an engine whose questions about the table another engine answers.
    pub(crate) async fn open_with_cluster(&self, cluster: Arc<dyn Cluster>) -> TestEngine {
        self.open_as(Durability::None, Limits::default(), Some(cluster)).await
    }

    async fn open_as(&self, durability: Durability, limits: Limits, cluster: Option<Arc<dyn Cluster>>) -> TestEngine {
        let deadline = Instant::now() + WAIT_MAX;
        loop {
            match Engine::open_with(self.path(), durability, limits, cluster.clone()).await {
                Ok((engine, found)) => {
                    let (leftovers_found, quarantined) = (found.leftovers, found.quarantined.len());
                    return TestEngine { engine, leftovers_found, quarantined };
                }
                Err(error @ Error::DataFolder(_)) => assert!(Instant::now() < deadline, "{error}"),
                Err(error) => panic!("{error}"),
            }
            tokio::task::yield_now().await;
        }
    }
}

/// An engine, which is closed when it is dropped.
pub(crate) struct TestEngine {
    engine: Engine,
    /// Files without a receipt that its start found and removed.
    pub(crate) leftovers_found: usize,
    /// Parts that its start set aside.
    pub(crate) quarantined: usize,
}

impl TestEngine {
    /// Some receipts in the order of their ids, at most `count_max`.
    pub(crate) async fn receipts(&self, after: Option<PartId>, count_max: usize) -> Result<Vec<Receipt>, Error> {
        let page = self.read_page(self.receipts_page(after, count_max, RECEIPTS_PAGE_BYTES).await?).await?;
        Ok(page.into_iter().map(|receipt| receipt.expect("an undamaged receipt")).collect())
    }

    /// Uploads a file, which must be accepted.
    pub(crate) async fn upload_valid(&self, csv: impl AsRef<[u8]>) -> Receipt {
        let csv = csv.as_ref();
        let receipt = upload_cut(self, csv, &[]).await;
        receipt.unwrap_or_else(|error| panic!("{error}\n{:.1000}", String::from_utf8_lossy(csv)))
    }
}

impl Deref for TestEngine {
    type Target = Engine;

    fn deref(&self) -> &Engine {
        &self.engine
    }
}

impl Drop for TestEngine {
    fn drop(&mut self) {
        self.engine.close();
    }
}

/// Uploads a file in blocks that end at `cuts`.
pub(crate) async fn upload_cut(engine: &Engine, csv: &[u8], cuts: &[usize]) -> Result<Receipt, Error> {
    let mut blocks = Vec::new();
    let mut start = 0;
    for &cut in cuts.iter().chain([&csv.len()]) {
        blocks.push(Ok::<_, Error>(Bytes::copy_from_slice(&csv[start..cut])));
        start = cut;
    }
    engine.upload(stream::iter(blocks)).await
}

/// A question about the survey that must be valid.
pub(crate) fn survey_question(ask: Ask, question: &str, state: Option<&str>) -> SurveyQuestion {
    SurveyQuestion::new(ask, question.to_owned(), state.map(str::to_owned), None).expect("a valid question")
}

/// A cell as RFC 4180 writes it, with quotes where it needs them.
pub(crate) fn csv_cell(cell: &str) -> String {
    let needs_quotes = cell.starts_with('"') || cell.contains([',', '\n', '\r']);
    if needs_quotes { quoted_csv_cell(cell) } else { cell.to_owned() }
}

/// A cell in quotes.
pub(crate) fn quoted_csv_cell(cell: &str) -> String {
    format!("\"{}\"", cell.replace('"', "\"\""))
}

/// Where a file is cut into blocks: at up to `count` places.
pub(crate) fn random_cuts(random: &mut fastrand::Rng, count: usize, bytes: usize) -> Vec<usize> {
    let mut cuts: Vec<usize> = (0..random.usize(..count)).map(|_| random.usize(..=bytes)).collect();
    cuts.sort_unstable();
    cuts
}

/// The seeds of a random test: the one that the environment variable names, or else the first `count`.
pub(crate) fn seeds(variable: &str, count: u64) -> std::ops::Range<u64> {
    match std::env::var(variable).ok().and_then(|seed| seed.parse::<u64>().ok()) {
        Some(seed) => seed..seed + 1,
        None => 0..count,
    }
}

/// Polls until the condition is true, for changes that the engine does not announce.
pub(crate) async fn wait_until(what: &str, condition: impl Fn() -> bool) {
    wait_for(what, || condition().then_some(())).await;
}

/// Polls until there is a value.
pub(crate) async fn wait_for<T>(what: &str, value: impl Fn() -> Option<T>) -> T {
    let deadline = Instant::now() + WAIT_MAX;
    loop {
        if let Some(value) = value() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Fails if the future does not end in time.
pub(crate) async fn in_time<T>(what: &str, wanted: impl Future<Output = T>) -> T {
    match timeout(WAIT_MAX, wanted).await {
        Ok(value) => value,
        Err(_elapsed) => panic!("waited in vain: {what}"),
    }
}
