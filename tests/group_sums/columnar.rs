//! Parts that are read from Parquet: the answer is that of the CSV, which is that of a simple computation.

use std::{collections::BTreeSet, fmt::Write as _, fs, sync::Arc};

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
        packed::Segment,
        part::{Part, PartId, Receipt},
        schema::{ColumnType, Schema},
        segment::SegmentReceipt,
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
    parts: Snapshot,
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
        let parts = receipts.iter().map(|receipt| (receipt.part, Arc::new(Part::of(receipt, None)))).collect();
        let parts = Snapshot::of(parts, OrdMap::new(), OrdSet::new());
        (Self::with(folder, parts).await, receipts)
    }

    async fn with(folder: DataFolder, parts: Snapshot) -> Self {
        let store = wait_for("the folder is free", || Store::open(folder.path(), Durability::None).ok()).await;
        Self { group_sums: GroupSums::new(), store: Arc::new(store), parts, _folder: folder }
    }

    /// The first `packed` files are in a segment, and of these the ones at the indices `removed` were removed.
    async fn packed(files: &[String], packed: usize, removed: &BTreeSet<usize>) -> Self {
        let folder = DataFolder::new();
        let engine = folder.open().await;
        for file in &files[..packed] {
            engine.upload_valid(file).await;
        }
        assert_eq!(engine.pack().await.expect("packed"), 1);
        let mut own = OrdMap::new();
        for file in &files[packed..] {
            let receipt = engine.upload_valid(file).await;
            own.insert(receipt.part, Arc::new(Part::of(&receipt, None)));
        }
        drop(engine);
        let names = folder.names_in("parts");
        let name = names.iter().find(|name| name.ends_with(".segment")).expect("a segment");
        let text = fs::read(folder.file(&format!("parts/{name}"))).expect("readable");
        let receipt: SegmentReceipt = serde_json::from_slice(&text).expect("a receipt");
        let schemas = receipt.files.iter().map(|file| Some(Arc::new(Schema::of(&file.columns))));
        let segment = Segment::of(&receipt, schemas.collect()).expect("checksums");
        let removed = removed.iter().filter_map(|index| PartId::new(*index as u64 + 1)).collect();
        let segments = OrdMap::from_iter([(segment.id.first, Arc::new(segment))]);
        Self::with(folder, Snapshot::of(own, segments, removed)).await
    }

    async fn group_sum(&self, by: &[&str], sum: &[&str], plan: Plan) -> Result<String, String> {
        let group_sum = GroupSum { lane: Lane::Question, ..self.group_sums.with_plan(plan) };
        let sources = Sources::parts(Arc::clone(&self.store), self.parts.clone());
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
                let plan = random_plan(&mut random);
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

/// A plan that cuts the input and spills groups, and reads Parquet or not.
fn random_plan(random: &mut fastrand::Rng) -> Plan {
    Plan {
        bytes_max: [random.usize(5_000..50_000), 1 << 22][random.usize(..2)],
        partitions_max: random.usize(1..6),
        partition_bytes_min: random.u64(1..20_000),
        task_bytes: random.usize(1..100_000),
        columnar_bytes_min: [0, 0, 50_000, u64::MAX][random.usize(..4)],
        range_bytes: random.usize(1..20_000),
    }
}

/// Parts in a segment, of which some were removed, and some that have their own files; in some, columns have other types.
#[tokio::test]
async fn random_segments_agree_with_a_simple_computation() {
    for seed in seeds("TALLY_SEGMENT_GROUPS_SEED", 12) {
        let mut random = fastrand::Rng::with_seed(seed);
        let (mut rows, mut files) = (Vec::new(), Vec::new());
        // More than a block of the index has, or fewer.
        let (packed, rows_max) = if seed == 0 { (600, 6) } else { (random.usize(2..60), 60) };
        let removed: BTreeSet<usize> = match random.u8(..3) {
            0 => BTreeSet::new(),
            1 => (0..packed).filter(|_| random.u8(..9) == 0).collect(),
            _ => (0..packed - 1).collect(),
        };
        let mixed = random.bool();
        for index in 0..packed + random.usize(..3) {
            let count = random.usize(..rows_max);
            let mut part = random_rows(&mut random, count, 3);
            if mixed && random.u8(..3) == 0 {
                // Text where other parts have integers: a second Parquet file.
                part.iter_mut().for_each(|row| row[2] = "no number".to_owned());
            }
            files.push(csv_of(&part, &mut random));
            if !removed.contains(&index) {
                rows.extend(part);
            }
        }
        let parts = Parts::packed(&files, packed, &removed).await;
        for by in [&["text"][..], &["day", "text"], &["number", "day", "text"], &["text", "long"], &["number"]] {
            let expected = expected_group_sum(&HEADER, &rows, &[], by, &["n"]);
            for _ in 0..4 {
                let plan = random_plan(&mut random);
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

/// The same rows in a segment, without those of three parts.
#[tokio::test]
async fn row_groups_of_a_segment_are_split_anywhere() {
    const ROWS_OF_PART: usize = 12_000;
    const PARTS: usize = 100;
    let mut files = Vec::new();
    let mut totals = [0; 9];
    let removed = BTreeSet::from([0, 3, 88]);
    for part in 0..PARTS {
        let mut csv = String::from("k,n\n");
        for row in part * ROWS_OF_PART..(part + 1) * ROWS_OF_PART {
            writeln!(csv, "{},{}", row % 9, row % 100).expect("in memory");
            if !removed.contains(&part) {
                totals[row % 9] += row % 100;
            }
        }
        files.push(csv);
    }
    let parts = Parts::packed(&files, PARTS, &removed).await;
    let (_, segment) = parts.parts.segments.get_min().expect("a segment");
    assert!(segment.files[0].row_groups > 1, "{} row groups", segment.files[0].row_groups);
    let mut expected = String::from("k,n\n");
    totals.iter().enumerate().for_each(|(key, total)| writeln!(expected, "{key},{total}").expect("in memory"));
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
