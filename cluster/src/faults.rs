//! What a test breaks on purpose in an executor, or in a server: `TALLY_CLUSTER_FAULT`, in builds with the feature `faults` alone. Faults happen
//! at a count of parts, so that a test does not depend on time.

use std::{
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use tally::engine::runtime::{
    group_rows::GroupRows,
    part_engine::{PartAnswer, PartOutcome},
};

/// A fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// The process dies after so many parts.
    DieAfter(u64),
    /// All parts are answered twice.
    Twice,
    /// No answer for every Nth part.
    LeaveOut(u64),
    /// One row too few is said to have been read of every part.
    Rows,
    /// All groups are sent twice.
    GroupsTwice,
    /// The last group is lost whenever groups are sent.
    LoseGroup,
    /// One group is lost whenever groups are sent, and another sent twice.
    SwapGroups,
    /// The server's plan has a leaf that Ballista does not know (`leaf.rs`).
    Leaf,
    /// Every part takes so many milliseconds.
    SlowMs(u64),
    /// The server waits so many milliseconds after a job was submitted.
    SubmitMs(u64),
}

static FAULT: LazyLock<Option<Fault>> = LazyLock::new(|| {
    if !cfg!(feature = "faults") {
        return None;
    }
    let text = std::env::var("TALLY_CLUSTER_FAULT").ok()?;
    let (name, number) = text.split_once(':').unwrap_or((&text, "1"));
    let number = number.parse().ok()?;
    match name {
        "die-after" => Some(Fault::DieAfter(number)),
        "twice" => Some(Fault::Twice),
        "leave-out" => Some(Fault::LeaveOut(number)),
        "rows" => Some(Fault::Rows),
        "groups-twice" => Some(Fault::GroupsTwice),
        "lose-group" => Some(Fault::LoseGroup),
        "swap-groups" => Some(Fault::SwapGroups),
        "leaf" => Some(Fault::Leaf),
        "slow-ms" => Some(Fault::SlowMs(number)),
        "submit-ms" => Some(Fault::SubmitMs(number)),
        _ => None,
    }
});

static PARTS: AtomicU64 = AtomicU64::new(0);

/// The answers that the executor gives instead of this one, which is mostly this one alone.
pub(crate) fn instead_of(mut answer: PartAnswer) -> Vec<PartAnswer> {
    let Some(fault) = *FAULT else { return vec![answer] };
    let number = PARTS.fetch_add(1, Ordering::Relaxed) + 1;
    match fault {
        Fault::DieAfter(parts) if number > parts => std::process::abort(),
        Fault::LeaveOut(every) if number.is_multiple_of(every.max(1)) => return Vec::new(),
        Fault::SlowMs(ms) => thread::sleep(Duration::from_millis(ms)),
        Fault::Rows => match &mut answer.outcome {
            PartOutcome::Summed(totals) => totals.rows = totals.rows.saturating_sub(1),
            PartOutcome::Grouped(groups) => groups.rows = groups.rows.saturating_sub(1),
            _ => {}
        },
        Fault::Twice => {
            let again = match &answer.outcome {
                PartOutcome::Summed(totals) => PartOutcome::Summed(*totals),
                PartOutcome::Grouped(groups) => PartOutcome::Grouped(*groups),
                _ => PartOutcome::WithoutColumn,
            };
            return vec![PartAnswer { part: answer.part, outcome: again }, answer];
        }
        Fault::DieAfter(_)
        | Fault::LeaveOut(_)
        | Fault::GroupsTwice
        | Fault::LoseGroup
        | Fault::SwapGroups
        | Fault::Leaf
        | Fault::SubmitMs(_) => {}
    }
    vec![answer]
}

/// Waits in the middle of a submission.
pub(crate) async fn pause_submission() {
    if let Some(Fault::SubmitMs(ms)) = *FAULT {
        tokio::time::sleep(Duration::from_millis(ms)).await;
    }
}

/// The groups that the executor sends instead of these.
pub(crate) fn groups_instead_of(groups: GroupRows) -> Vec<GroupRows> {
    match *FAULT {
        Some(Fault::GroupsTwice) => vec![groups.clone(), groups],
        Some(Fault::LoseGroup) => {
            let mut fewer = GroupRows::default();
            let count = groups.len().saturating_sub(1);
            groups.iter().take(count).for_each(|(key, value)| fewer.push(key, value));
            vec![fewer]
        }
        Some(Fault::SwapGroups) => {
            let mut swapped = GroupRows::default();
            let last = groups.len().saturating_sub(1);
            let again = groups.iter().take(1);
            groups.iter().take(last).chain(again).for_each(|(key, value)| swapped.push(key, value));
            vec![swapped]
        }
        _ => vec![groups],
    }
}

/// Whether the server's plans are to have a leaf that Ballista does not know.
#[cfg(feature = "faults")]
pub(crate) fn makes_a_leaf() -> bool {
    *FAULT == Some(Fault::Leaf)
}
