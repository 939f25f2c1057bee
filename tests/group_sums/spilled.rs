//! Groups that do not fit in memory: many and few rows for each group, ranges of keys that are merged at the same time, damage,
//! and sums that are dropped during the merge.

use std::{
    fmt::Write as _,
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use tally::{
    engine::group_by::{group_sum::GroupSum, output::Groups, sources::Sources, spec::Plan},
    engine::storage::temp_file::TempFolder,
    error::Kind,
};
use tempfile::TempDir;
use tokio::sync::Notify;

use crate::{
    common::{in_time, seeds, wait_until},
    fixture::{GroupSums, ROOMY, expected_group_sum, random_csv_cell, spec, temporary_files},
};

/// A file whose groups have 1 to 40 rows on average, and whose keys have up to 49 bytes in common. How often a group occurs changes
/// in the middle of the file.
fn random_rows(random: &mut fastrand::Rng) -> Vec<Vec<String>> {
    let common = "common/".repeat([0, 1, 5, 7][random.usize(..4)]);
    let mut rows = Vec::new();
    for _ in 0..2 {
        let count = random.usize(1000..15_000);
        let groups = (count / [1, 2, 40][random.usize(..3)]).max(1) as u64 * [1, 1000][random.usize(..2)];
        for _ in 0..count {
            let key = random.u64(..groups);
            let key = if key.is_multiple_of(50) {
                String::new()
            } else {
                format!("{common}{key}{}", "x".repeat(usize::try_from(key % 7).expect("small")))
            };
            rows.push(vec![key, ["", "a", "b,", "\"c"][random.usize(..4)].to_owned(), random.i32(..).to_string()]);
        }
    }
    rows
}

fn csv_of(rows: &[Vec<String>], random: &mut fastrand::Rng) -> (String, Vec<usize>) {
    let (mut csv, mut lines) = ("k,l,n\n".to_owned(), Vec::new());
    for (index, row) in rows.iter().enumerate() {
        lines.push(index + 2);
        let cells: Vec<_> = row.iter().map(|cell| random_csv_cell(cell, random)).collect();
        writeln!(csv, "{}", cells.join(",")).expect("in memory");
    }
    (csv, lines)
}

#[tokio::test]
async fn spilled_groups_agree_with_a_simple_computation() {
    let group_sums = GroupSums::new();
    for seed in seeds("TALLY_GROUPS_SEED", 12) {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut rows = random_rows(&mut random);
        if seed % 4 == 3 {
            // A cell that is no integer, or a total that does not fit.
            let at = random.usize(..rows.len());
            rows[at][2] = ["x", "9223372036854775807"][random.usize(..2)].to_owned();
            let again = rows[at].clone();
            rows.push(again);
        }
        let (csv, lines) = csv_of(&rows, &mut random);
        for by in [&["k"][..], &["l", "k"], &["k", "l"]] {
            let expected = expected_group_sum(&["k", "l", "n"], &rows, &lines, by, &["n"]);
            for _ in 0..3 {
                let plan = Plan {
                    bytes_max: [random.usize(20_000..100_000), random.usize(100_000..2_000_000)][random.usize(..2)],
                    partitions_max: random.usize(1..4),
                    partition_bytes_min: 1000,
                    task_bytes: random.usize(1000..200_000),
                    range_bytes: [random.usize(1..2000), random.usize(2000..100_000)][random.usize(..2)],
                    ..ROOMY
                };
                let got = group_sums.group_sum(csv.as_bytes(), by, &["n"], plan).await;
                assert!(got == expected, "seed {seed}, by {by:?}, {plan:?}: {:?}", got.map(|csv| csv.len()));
            }
        }
    }
    wait_until("no file is left", || temporary_files(group_sums.folder.path()) == 0).await;
}

/// A sum of a file with 40,000 groups in which every group is spilled, and the folder of what it spills.
struct Spilled {
    group_sums: GroupSums,
    csv: PathBuf,
    spills: TempDir,
}

const PLAN: Plan =
    Plan { bytes_max: 1_000_000, partitions_max: 2, partition_bytes_min: 1000, range_bytes: 20_000, ..ROOMY };

impl Spilled {
    fn new() -> Self {
        let group_sums = GroupSums::new();
        let csv = group_sums.folder.path().join("in.csv");
        let rows: String = (0..40_000).map(|index| format!("key {},1\n", index * 7919 % 40_000)).collect();
        fs::write(&csv, format!("k,n\n{rows}")).expect("written");
        Self { group_sums, csv, spills: TempDir::new().expect("a temporary folder") }
    }

    async fn groups(&self) -> Groups {
        let folder = TempFolder::new(self.spills.path());
        let group_sum = GroupSum { folder, ..self.group_sums.with_plan(PLAN) };
        let sources = Sources::file(&self.csv).expect("opened");
        group_sum.run(sources, spec(&["k"], &["n"]), None, |_| ()).await.expect("sums")
    }

    /// The files without a name that have the runs, opened again.
    fn files(&self) -> Vec<File> {
        let open = fs::read_dir("/proc/self/fd").expect("Linux").flatten();
        let is_spill = |link: &Path| link.starts_with(self.spills.path());
        let spilled = open.filter(|entry| fs::read_link(entry.path()).is_ok_and(|link| is_spill(&link)));
        spilled.filter_map(|entry| File::options().read(true).write(true).open(entry.path()).ok()).collect()
    }
}

#[tokio::test]
async fn a_damaged_run_is_an_error() {
    let spilled = Spilled::new();
    let header = ["k".to_owned(), "n".to_owned()];
    let whole = spilled.groups().await.write_csv(&header, Vec::new()).await.expect("groups");
    assert_eq!(whole.iter().filter(|&&byte| byte == b'\n').count(), 40_001);
    let mut random = fastrand::Rng::with_seed(3);
    for _ in 0..30 {
        let groups = spilled.groups().await;
        let files = spilled.files();
        assert!(!files.is_empty(), "nothing was spilled");
        let file = &files[random.usize(..files.len())];
        let offset = random.u64(..file.metadata().expect("a file").len());
        let mut byte = [0];
        file.read_exact_at(&mut byte, offset).expect("read");
        file.write_all_at(&[byte[0] ^ 1 << random.u8(..8)], offset).expect("written");
        drop(files);
        let error = groups.write_csv(&header, Vec::new()).await.err();
        let error = error.unwrap_or_else(|| panic!("byte {offset} was changed"));
        assert_eq!(
            (error.kind(), error.to_string()),
            (Kind::Internal, "internal error: a run is not what was written".to_owned())
        );
    }
    wait_until("no file is left", || temporary_files(spilled.spills.path()) == 0).await;
}

/// Tells of its first write.
struct FirstWrite(Arc<Notify>);

impl Write for FirstWrite {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.notify_one();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_sum_that_is_dropped_during_the_merge_leaves_nothing() {
    let spilled = Spilled::new();
    let header = ["k".to_owned(), "n".to_owned()];
    for round in 0..5 {
        let groups = spilled.groups().await;
        assert_ne!(temporary_files(spilled.spills.path()), 0, "nothing was spilled");
        let written = Arc::new(Notify::new());
        let out = FirstWrite(Arc::clone(&written));
        let merged = tokio::select! {
            merged = groups.write_csv(&header, out) => Some(merged.is_ok()),
            () = written.notified() => None,
        };
        assert!(merged != Some(false), "round {round}");
        wait_until("its spilled files are gone", || temporary_files(spilled.spills.path()) == 0).await;
    }
    // The workers go on.
    let csv = in_time("groups", spilled.groups().await.write_csv(&header, Vec::new())).await;
    assert!(csv.expect("groups").starts_with(b"k,n\nkey 0,1\nkey 1,1\nkey 10,1\n"));
}
