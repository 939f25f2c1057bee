//! Parts that are read from Parquet: the answer is that of the CSV, which is that of a simple computation.

use std::{fmt::Write as _, sync::Arc};

use imbl::{OrdMap, OrdSet};
use tally::{
    engine::{
        Durability,
        group_by::{group_sum::GroupSum, sources::Sources, spec::Plan},
        state::{Lane, registry::Snapshot},
        storage::Store,
    },
    limits::TASK_BYTES,
    model::{
        part::{Part, PartId, Receipt},
        schema::ColumnType,
    },
};

use crate::{
    common::{DataFolder, seeds, wait_for},
    fixture::{GroupSums, ROOMY, expected_group_sum, random_csv_cell, spec},
};

/// Parts in a folder that no engine has open, because an engine always uses the same plan.
struct Parts {
    group_sums: GroupSums,
    store: Arc<Store>,
    parts: OrdMap<PartId, Arc<Part>>,
    _folder: DataFolder,
}

impl Parts {
    async fn of(files: &[String]) -> (Self, Vec<Receipt>) {
        let folder = DataFolder::new();
        let engine = folder.open().await;
        let mut receipts = Vec::new();
        for file in files {
            receipts.push(engine.upload_valid(file).await);
        }
        drop(engine);
        let store = wait_for("the folder is free", || Store::open(folder.path(), Durability::None).ok()).await;
        let store = Arc::new(store);
        let parts = receipts.iter().map(|receipt| (receipt.part, Arc::new(Part::of(receipt, None)))).collect();
        (Self { group_sums: GroupSums::new(), store, parts, _folder: folder }, receipts)
    }

    async fn group_sum(&self, by: &[&str], sum: &[&str], plan: Plan) -> Result<String, String> {
        let group_sum = GroupSum { lane: Lane::Question, ..self.group_sums.with_plan(plan) };
        let sources = Sources::Parts {
            store: Arc::clone(&self.store),
            parts: Snapshot::of(self.parts.clone(), OrdMap::new(), OrdSet::new()),
        };
        let spec = spec(by, sum);
        let header = [spec.by(), spec.sum()].concat();
        let groups = group_sum.run(sources, spec, None, |_| ()).await.map_err(|error| error.to_string())?;
        let csv = groups.write_csv(&header, Vec::new()).await.map_err(|error| error.to_string())?;
        Ok(String::from_utf8(csv).expect("text"))
    }
}

const HEADER: [&str; 6] = ["text", "day", "number", "n", "m", "long"];

/// Rows with texts, days and integers as groups, in all of which cells are missing, and two columns to sum.
fn random_rows(random: &mut fastrand::Rng, count: usize, texts: usize) -> Vec<Vec<String>> {
    let missing_every = [usize::MAX, 2, 50][random.usize(..3)];
    let mut rows = Vec::new();
    for _ in 0..count {
        let cell = |text: String, random: &mut fastrand::Rng| {
            if random.usize(..missing_every) == 0 { String::new() } else { text }
        };
        rows.push(vec![
            cell(["a", "b\n\"c\"", "ü,", "it's"][random.usize(..4)].repeat(1 + random.usize(..texts)), random),
            cell(format!("2024-0{}-1{}", random.u8(1..9), random.u8(..9)), random),
            cell(random.i64(-3..4).to_string(), random),
            cell(random.i64(-1000..1000).to_string(), random),
            cell([i64::MAX, i64::MIN, 0, 1][random.usize(..4)].to_string(), random),
            cell("x".repeat(random.usize(..3) * 400), random),
        ]);
    }
    rows
}

fn csv_of(rows: &[Vec<String>], random: &mut fastrand::Rng) -> String {
    let mut csv = HEADER.join(",") + "\n";
    for row in rows {
        let cells: Vec<_> = row.iter().map(|cell| random_csv_cell(cell, random)).collect();
        writeln!(csv, "{}", cells.join(",")).expect("in memory");
    }
    csv
}

#[tokio::test]
async fn random_parts_agree_with_a_simple_computation_in_both_formats() {
    for seed in seeds("TALLY_GROUPS_SEED", 6) {
        let mut random = fastrand::Rng::with_seed(seed);
        let (mut rows, mut files) = (Vec::new(), Vec::new());
        for _ in 0..random.usize(1..4) {
            let (count, texts) = (random.usize(1..6000), [1, 3, 200][random.usize(..3)]);
            let part = random_rows(&mut random, count, texts);
            files.push(csv_of(&part, &mut random));
            rows.extend(part);
        }
        let (parts, _) = Parts::of(&files).await;
        for by in [&["text"][..], &["day", "text"], &["number", "day", "text"], &["text", "long"], &["long"]] {
            let expected = expected_group_sum(&HEADER, &rows, &[], by, &["n"]);
            for _ in 0..4 {
                let plan = Plan {
                    bytes_max: [random.usize(5_000..50_000), 1 << 22][random.usize(..2)],
                    partitions_max: random.usize(1..6),
                    partition_bytes_min: random.u64(1..20_000),
                    task_bytes: random.usize(1..100_000),
                    columnar_bytes_min: [0, 0, 50_000, u64::MAX][random.usize(..4)],
                    range_bytes: random.usize(1..20_000),
                };
                assert_eq!(parts.group_sum(by, &["n"], plan).await, expected, "seed {seed}, by {by:?}, {plan:?}");
            }
        }
        // Totals that may not fit in 64 bits.
        let expected = expected_group_sum(&HEADER, &rows, &[], &["day"], &["m", "n"]);
        for columnar_bytes_min in [0, u64::MAX] {
            let plan = Plan { columnar_bytes_min, ..ROOMY };
            assert_eq!(parts.group_sum(&["day"], &["m", "n"], plan).await, expected, "seed {seed}");
        }
    }
}

/// More rows than a row group has.
#[tokio::test]
async fn several_row_groups_are_split_anywhere() {
    const ROWS: u64 = 1_200_000;
    let mut csv = String::from("k,n\n");
    for row in 0..ROWS {
        writeln!(csv, "{},{}", row % 9, row % 1000).expect("in memory");
    }
    let (parts, receipts) = Parts::of(&[csv]).await;
    assert!(receipts[0].row_groups > 1, "{} row groups", receipts[0].row_groups);
    let mut expected = String::from("k,n\n");
    for key in 0..9 {
        let total: u64 = (0..ROWS).filter(|row| row % 9 == key).map(|row| row % 1000).sum();
        writeln!(expected, "{key},{total}").expect("in memory");
    }
    for (partitions_max, task_bytes) in [(1, TASK_BYTES), (2, 100_000), (7, 1_000_000)] {
        let plan = Plan { partitions_max, task_bytes, partition_bytes_min: 1, columnar_bytes_min: 0, ..ROOMY };
        assert_eq!(parts.group_sum(&["k"], &["n"], plan).await.as_ref(), Ok(&expected), "{plan:?}");
    }
}

/// A group is the text of its cells, so a column whose texts Parquet does not keep is read from CSV.
#[tokio::test]
async fn texts_that_parquet_does_not_keep_are_read_from_csv() {
    let csv = "k,n\n1.5,1\n1.50,2\n".to_owned();
    let (parts, receipts) = Parts::of(&[csv]).await;
    assert_eq!(receipts[0].columns[0].column_type, ColumnType::Float64);
    let plan = Plan { columnar_bytes_min: 0, ..ROOMY };
    assert_eq!(parts.group_sum(&["k"], &["n"], plan).await.as_deref(), Ok("k,n\n1.5,1\n1.50,2\n"));
}
