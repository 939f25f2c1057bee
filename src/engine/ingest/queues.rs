//! The two queues of uploads: small files that wait for a worker, and staged parts that wait for a commit. Each has a tokio task
//! that takes what waits in batches.

use std::sync::Arc;

use tokio::sync::mpsc;

use super::{
    commit_queue::{WaitingCommit, commit_batches},
    small_files::{SmallFile, SmallFileStage},
};
use crate::{engine::runtime::context::Context, limits::UPLOADS_MAX};

/// The sending ends. The tasks end when the last clone is dropped.
#[derive(Clone)]
pub(crate) struct Queues {
    pub(super) small_files: mpsc::Sender<SmallFile>,
    pub(super) commits: mpsc::Sender<WaitingCommit>,
}

impl Queues {
    /// Starts both tokio tasks.
    pub(crate) fn start(context: &Arc<Context>) -> Self {
        let (commits, waiting) = mpsc::channel(UPLOADS_MAX);
        tokio::spawn(commit_batches(context.workers.clone(), Arc::clone(&context.store), waiting));
        let (small_files, waiting) = mpsc::channel(UPLOADS_MAX);
        tokio::spawn(SmallFileStage::of(context).run(waiting));
        Self { small_files, commits }
    }
}
