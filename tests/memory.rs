//! What questions take of the heap while they read the longest cells that there may be: an allocator counts it, so this
//! has a test binary of its own.
#![allow(clippy::expect_used, reason = "a panic fails the test")]

use bytes::Bytes;
use futures_util::stream;
use peak_alloc::PeakAlloc;
use tally::{
    engine::{
        Durability, Engine,
        part::Format,
        survey::{Ask, SurveyQuestion},
    },
    error::Error,
    limits::{CELL_BYTES_MAX, Limits, MIB},
};
use tempfile::TempDir;

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

/// Some pages, and far less than the long cells of one row group: they pack so well that one has more than 100 of them.
const HEAP_BYTES_MAX: usize = 16 * MIB;
const ROWS: usize = 300;

/// What a call takes at its worst beyond what there was before it.
async fn taken<T>(call: impl Future<Output = T>) -> (T, usize) {
    let before = HEAP.current_usage();
    HEAP.reset_peak_usage();
    let result = call.await;
    (result, HEAP.peak_usage().saturating_sub(before))
}

/// One test, as two would count each other's bytes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_cells_are_read_page_by_page() {
    let folder = TempDir::new().expect("a temporary folder");
    let opened = Engine::open(folder.path(), Durability::None, Limits::default()).await;
    let (engine, _) = opened.expect("a data folder");
    // Numbers after a MiB of spaces, so that there is something to add, and in the last row one that can be asked for.
    let spaces = " ".repeat(CELL_BYTES_MAX - 3);
    let long = move |row: usize| if row == ROWS { "7".to_owned() } else { format!("{spaces}{row:03}") };
    for long_column in ["Question", "LocationDesc", "Stratification1"] {
        let names = ["Question", "LocationDesc", "Stratification1", "StratificationCategory1", "Data_Value"];
        let header = names.join(",") + "\n";
        let long = long.clone();
        let row = move |row| names.map(|name| if name == long_column { long(row) } else { "7".to_owned() }).join(",");
        let lines = std::iter::once(header).chain((1..=ROWS).map(move |number| row(number) + "\n"));
        let body = stream::iter(lines.map(|line| Ok::<_, Error>(Bytes::from(line))));
        let (receipt, bytes) = taken(engine.upload(body)).await;
        assert_eq!(receipt.expect("a table").row_groups, 2, "the test wants many long cells in a row group");
        println!("{long_column} was uploaded in {:.1} MiB", bytes as f64 / MIB as f64);
    }
    let check = |what: &str, bytes: usize| {
        let said = format!("{what} took {:.1} MiB", bytes as f64 / MIB as f64);
        println!("{said}");
        assert!(bytes < HEAP_BYTES_MAX, "{said}");
    };

    let sum = ROWS * (ROWS - 1) / 2 + 7 + 2 * 7 * ROWS;
    for column in ["Question", "LocationDesc", "Stratification1"] {
        let (answer, bytes) = taken(engine.column_sum(column, Format::Parquet)).await;
        assert_eq!(answer.expect("numbers").total, sum as i64);
        check(&format!("the sum of {column}"), bytes);
    }
    for (ask, expected) in [
        (Ask::GlobalMean, r#"{"global_mean":7.0}"#),
        (Ask::StateMean, r#"{"7":7.0}"#),
        (Ask::StateDiffFromMean, r#"{"7":0.0}"#),
    ] {
        let state = ask.is_of_state().then(|| "7".to_owned());
        let question = SurveyQuestion::new(ask, "7".to_owned(), state, None).expect("a question");
        let (answer, bytes) = taken(engine.survey(&question)).await;
        assert_eq!(serde_json::to_string(&answer.expect("an answer")).expect("serialises"), expected);
        check(&format!("{ask:?}"), bytes);
    }
    // Each text is a group, and of so long ones there are soon too many.
    for ask in [Ask::StatesMean, Ask::MeanByCategory] {
        let question = SurveyQuestion::new(ask, "7".to_owned(), None, None).expect("a question");
        let (answer, bytes) = taken(engine.survey(&question)).await;
        assert!(matches!(answer, Err(Error::TooManyGroups { .. })), "{ask:?}: {answer:?}");
        check(&format!("{ask:?}"), bytes);
    }
    engine.close();
}
