//! Group sums without an engine, and a simple computation of their results.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Write as _,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

use tally::{
    engine::{
        group_by::{
            group_sum::GroupSum,
            sources::Sources,
            spec::{GroupBy, Plan},
        },
        runtime::workers::Workers,
    },
    error::{Error, Kind},
    limits::{GROUP_RANGE_BYTES, TASK_BYTES},
};
use tempfile::{NamedTempFile, TempDir};

use crate::common::{csv_cell, quoted_csv_cell};

/// All groups fit in memory, and the file is read as one byte range.
pub(crate) const ROOMY: Plan = Plan {
    bytes_max: 64 << 20,
    partitions_max: 1,
    partition_bytes_min: 1 << 20,
    task_bytes: TASK_BYTES,
    columnar_bytes_min: u64::MAX,
    range_bytes: GROUP_RANGE_BYTES,
};
/// Cuts a file of a few hundred bytes wherever it can be cut, and spills groups to disk every few rows.
pub(crate) const NARROW: Plan =
    Plan { bytes_max: 4096, partitions_max: 8, partition_bytes_min: 16, task_bytes: 64, ..ROOMY };

/// Group sums without an engine, and a folder for what they spill: a test chooses memory and cuts by a `Plan`.
pub(crate) struct GroupSums {
    standalone: GroupSum,
    pub(crate) folder: TempDir,
}

impl GroupSums {
    pub(crate) fn new() -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        Self { standalone: GroupSum::standalone(folder.path(), ROOMY).expect("threads"), folder }
    }

    pub(crate) fn workers(&self) -> &Workers {
        &self.standalone.workers
    }

    pub(crate) fn with_plan(&self, plan: Plan) -> GroupSum {
        GroupSum { plan, ..self.standalone.clone() }
    }

    /// The result as CSV, or the error's text.
    pub(crate) async fn group_sum(&self, csv: &[u8], by: &[&str], sum: &[&str], plan: Plan) -> Result<String, String> {
        let mut file = NamedTempFile::new_in(self.folder.path()).expect("a file");
        file.write_all(csv).expect("written");
        self.group_sum_file(file.path(), by, sum, plan).await
    }

    pub(crate) async fn group_sum_file(
        &self,
        file: &Path,
        by: &[&str],
        sum: &[&str],
        plan: Plan,
    ) -> Result<String, String> {
        let text = |error: Error| {
            assert_eq!(error.kind(), Kind::Input, "{error}");
            error.to_string()
        };
        let sources = Sources::file(file).expect("opened");
        let file_bytes = sources.bytes();
        let spec = spec(by, sum);
        let header = [spec.by(), spec.sum()].concat();
        let reported = AtomicU64::new(0);
        let progress = |bytes| reported.store(bytes, Ordering::Relaxed);
        let groups = self.with_plan(plan).run(sources, spec, None, progress).await.map_err(text)?;
        assert_eq!(reported.into_inner(), file_bytes, "progress ends at the file's size");
        let csv = groups.write_csv(&header, Vec::new()).await.map_err(text)?;
        Ok(String::from_utf8(csv).expect("text"))
    }

    /// Every plan must give this answer.
    pub(crate) async fn check(&self, csv: &[u8], by: &[&str], sum: &[&str], expected: Result<&str, &str>) {
        let expected = expected.map(str::to_owned).map_err(str::to_owned);
        for plan in
            [ROOMY, NARROW, Plan { task_bytes: 1, partitions_max: 3, ..NARROW }, Plan { bytes_max: 64, ..NARROW }]
        {
            let got = self.group_sum(csv, by, sum, plan).await;
            assert_eq!(got, expected, "{plan:?}: {:?}", String::from_utf8_lossy(csv));
        }
    }
}

impl Drop for GroupSums {
    fn drop(&mut self) {
        self.workers().close();
    }
}

/// A question about these columns.
pub(crate) fn spec(by: &[&str], sum: &[&str]) -> GroupBy {
    let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
    GroupBy::new(names(by), names(sum)).expect("columns")
}

/// The group sum of `rows`, as CSV, or the error, computed in the simplest way. The cells of `rows` are without quotes.
/// `lines` are the lines on which the rows begin; they are needed only if there is a wrong cell.
pub(crate) fn expected_group_sum(
    header: &[&str],
    rows: &[Vec<String>],
    lines: &[usize],
    by: &[&str],
    sum: &[&str],
) -> Result<String, String> {
    let index = |name: &&str| header.iter().position(|other| other == name).expect("a column");
    let mut groups = BTreeMap::<Vec<&str>, Vec<i128>>::new();
    for (row_index, row) in rows.iter().enumerate() {
        let key = by.iter().map(|name| row[index(name)].as_str()).collect();
        let totals = groups.entry(key).or_insert_with(|| vec![0; sum.len()]);
        for (total, name) in totals.iter_mut().zip(sum) {
            let cell = &row[index(name)];
            if !cell.trim_ascii().is_empty() {
                let wrong = |problem| {
                    let (row, line) = (row_index + 1, lines[row_index]);
                    format!("row {row} (line {line}), column {name:?}: {cell:?} {problem}")
                };
                let value: i128 = cell.trim_ascii().parse().map_err(|_| wrong("is not an integer"))?;
                *total += i128::from(i64::try_from(value).map_err(|_| wrong("does not fit in 64 bits"))?);
            }
        }
    }
    let mut csv = csv::WriterBuilder::new().from_writer(Vec::new());
    csv.write_record(by.iter().chain(sum)).expect("in memory");
    for (key, totals) in groups {
        for (total, name) in totals.iter().zip(sum) {
            if i64::try_from(*total).is_err() {
                let group = key.iter().map(|cell| format!("{cell:?}")).collect::<Vec<_>>().join(", ");
                return Err(format!("group {group}, column {name:?}: the sum {total} does not fit in 64 bits"));
            }
        }
        let totals = totals.iter().map(i128::to_string);
        csv.write_record(key.iter().map(|&cell| cell.to_owned()).chain(totals)).expect("in memory");
    }
    Ok(String::from_utf8(csv.into_inner().expect("in memory")).expect("text"))
}

/// A cell as RFC 4180 writes it, sometimes quoted although it need not be.
pub(crate) fn random_csv_cell(cell: &str, random: &mut fastrand::Rng) -> String {
    if random.u8(..4) == 0 { quoted_csv_cell(cell) } else { csv_cell(cell) }
}

/// The number of files in a folder that this process has open and that have no name; 0 where there is no /proc.
pub(crate) fn temporary_files(folder: &Path) -> usize {
    let open = fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    let files = open.filter_map(|entry| fs::read_link(entry.path()).ok());
    files
        .filter(|file| file.starts_with(folder) && file.to_string_lossy().ends_with(" (deleted)"))
        .collect::<BTreeSet<_>>()
        .len()
}
