//! How much heap memory sums and statistics take while they read the longest cells that are allowed. The test counts with
//! an allocator of its own, so it needs a test program of its own.
#![allow(clippy::expect_used, reason = "a panic fails the test")]

use bytes::Bytes;
use futures_util::stream;
use peak_alloc::PeakAlloc;
use tally::{
    engine::survey::question::Ask,
    error::{Error, statistics::StatisticsError},
    limits::{CELL_BYTES_MAX, MIB},
    model::format::Format,
};

use self::common::{DataFolder, survey_question};

mod common;

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

/// Room for some pages, and far less than the long cells of one row group, which compress so well that a row group has more
/// than 100 of them.
const HEAP_BYTES_MAX: usize = 16 * MIB;
const ROWS: usize = 300;

/// Runs a call; returns its result, and the most heap memory that it took.
async fn peak_of<T>(call: impl Future<Output = T>) -> (T, usize) {
    let before = HEAP.current_usage();
    HEAP.reset_peak_usage();
    let result = call.await;
    (result, HEAP.peak_usage().saturating_sub(before))
}

/// This is the only test of the program, because two tests would count each other's bytes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_cells_are_read_page_by_page() {
    let folder = DataFolder::new();
    let engine = folder.open().await;
    // Integers after a MiB of spaces, so that the column has a sum. The last row has 7, so that a question can name it.
    let spaces = " ".repeat(CELL_BYTES_MAX - 3);
    let long = move |row: usize| if row == ROWS { "7".to_owned() } else { format!("{spaces}{row:03}") };
    for long_column in ["Question", "LocationDesc", "Stratification1"] {
        let names = ["Question", "LocationDesc", "Stratification1", "StratificationCategory1", "Data_Value"];
        let header = names.join(",") + "\n";
        let long = long.clone();
        let row = move |row| names.map(|name| if name == long_column { long(row) } else { "7".to_owned() }).join(",");
        let lines = std::iter::once(header).chain((1..=ROWS).map(move |number| row(number) + "\n"));
        let body = stream::iter(lines.map(|line| Ok::<_, Error>(Bytes::from(line))));
        let (receipt, bytes) = peak_of(engine.upload(body)).await;
        assert_eq!(receipt.expect("a table").row_groups, 2, "the test needs many long cells in a row group");
        println!("{long_column} was uploaded in {:.1} MiB", bytes as f64 / MIB as f64);
    }
    let check = |what: &str, bytes: usize| {
        let said = format!("{what} took {:.1} MiB", bytes as f64 / MIB as f64);
        println!("{said}");
        assert!(bytes < HEAP_BYTES_MAX, "{said}");
    };

    let sum = ROWS * (ROWS - 1) / 2 + 7 + 2 * 7 * ROWS;
    for column in ["Question", "LocationDesc", "Stratification1"] {
        let (answer, bytes) = peak_of(engine.column_sum(column, Format::Parquet)).await;
        assert_eq!(answer.expect("numbers").total, sum as i64);
        check(&format!("the sum of {column}"), bytes);
    }
    for (ask, expected) in [
        (Ask::GlobalMean, r#"{"global_mean":7.0}"#),
        (Ask::StateMean, r#"{"7":7.0}"#),
        (Ask::StateDiffFromMean, r#"{"7":0.0}"#),
    ] {
        let question = survey_question(ask, "7", ask.is_of_state().then_some("7"));
        let (answer, bytes) = peak_of(engine.survey(&question)).await;
        assert_eq!(serde_json::to_string(&answer.expect("an answer")).expect("serialises"), expected);
        check(&format!("{ask:?}"), bytes);
    }
    // Each text is a group. So long ones soon reach the limit of groups.
    for ask in [Ask::StatesMean, Ask::MeanByCategory] {
        let question = survey_question(ask, "7", None);
        let (answer, bytes) = peak_of(engine.survey(&question)).await;
        assert!(matches!(answer, Err(Error::Statistics(StatisticsError::TooManyGroups { .. }))), "{ask:?}: {answer:?}");
        check(&format!("{ask:?}"), bytes);
    }
}
