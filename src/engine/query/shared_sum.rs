//! Calls that ask for the same sum while it is computed share the work: one of them computes it, the others wait for it.
//!
//! Two calls ask for the same if the table has had the same parts since the first of them began. So an answer has all parts that were
//! acknowledged before it was asked for, and nothing is kept once it is there.

use std::sync::Arc;

use super::column_sum;
use crate::{
    engine::{
        parts::selection::parts_to_read,
        runtime::context::Context,
        state::{
            Lane,
            sums::{Joined, Shared},
        },
    },
    error::Error,
    model::{column_sum::ColumnSum, format::Format},
};

/// The exact sum of a column over all parts. Parts without it add nothing.
///
/// Errors: those of [`column_sum::column_sum`]; a part that is missing from the table.
pub(crate) async fn column_sum(context: &Arc<Context>, column: &str, format: Format) -> Result<ColumnSum, Error> {
    let column: Arc<str> = column.into();
    let parts = parts_to_read(context, Lane::Question).await?;
    for _ in 0..JOINS_MAX {
        match context.state.with(|state| state.sums.join(&column, format, &parts)) {
            Joined::Computes(number, answer) => {
                let running = Running { context, number };
                let sum = column_sum::column_sum(context, &column, parts, format).await;
                drop(running); // so that who asks from now on reads the files again
                answer.send_replace(Some(sum.as_ref().map_or(Shared::Failed, |sum| Shared::Sum(*sum))));
                return sum;
            }
            Joined::Waits(mut answer) => match answer.wait_for(Option::is_some).await.ok().and_then(|shared| *shared) {
                Some(Shared::Sum(sum)) => return Ok(sum),
                // Each finds the error itself, and all of them at the same time.
                Some(Shared::Failed) => break,
                // The call that computed it was cancelled: one of those who wait computes it for the others.
                None => {}
            },
            Joined::Alone => break,
        }
    }
    column_sum::column_sum(context, &column, parts, format).await
}

/// How often a call waits for the sum of another one, which may be cancelled. Then it computes its own.
const JOINS_MAX: usize = 2;

/// A sum that others may join until this is dropped.
struct Running<'a> {
    context: &'a Context,
    number: u64,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let running = self.context.state.with(|state| state.sums.leave(self.number));
        drop(running);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use bytes::Bytes;
    use futures_util::{future::join_all, poll, stream};
    use tempfile::TempDir;

    use super::*;
    use crate::{
        engine::Engine,
        limits::{Limits, SHARED_SUMS_MAX, WORKERS},
        model::durability::Durability,
    };

    async fn engine_with(folder: &TempDir, text: &'static str) -> Engine {
        let opened = Engine::open(folder.path(), Durability::None, Limits::default()).await;
        let (engine, _) = opened.expect("a data folder");
        add(&engine, text).await;
        engine
    }

    async fn add(engine: &Engine, text: &'static str) {
        engine.upload(stream::iter([Ok(Bytes::from_static(text.as_bytes()))])).await.expect("valid");
    }

    /// Keeps all workers busy until what it returns is dropped, so that no sum is there at once.
    async fn busy_workers(engine: &Engine) -> Vec<mpsc::Sender<()>> {
        let (started, mut all_started) = tokio::sync::mpsc::channel(WORKERS);
        let mut busy = Vec::new();
        for _ in 0..WORKERS {
            let (until_dropped, dropped) = mpsc::channel();
            let (context, started) = (Arc::clone(&engine.context), started.clone());
            tokio::spawn(async move {
                let wait = move |_: &_| {
                    started.blocking_send(()).expect("the test waits for it");
                    let _dropped = dropped.recv();
                    Ok(())
                };
                context.on_worker(Lane::Question, wait).await
            });
            busy.push(until_dropped);
        }
        for _ in 0..WORKERS {
            all_started.recv().await.expect("it starts");
        }
        busy
    }

    fn running(engine: &Engine) -> usize {
        engine.context.state.with(|state| state.sums.running())
    }

    #[tokio::test]
    async fn calls_that_ask_the_same_share_one_sum_and_nothing_is_kept() {
        let folder = TempDir::new().expect("a temporary folder");
        let engine = engine_with(&folder, "a,b\n1,2\n").await;
        let busy = busy_workers(&engine).await;
        let ask = |column, format| engine.column_sum(column, format);
        let mut first = Box::pin(ask("a", Format::Csv));
        assert!(poll!(&mut first).is_pending());
        let mut same = Box::pin(ask("a", Format::Csv));
        assert!(poll!(&mut same).is_pending());
        assert_eq!(running(&engine), 1, "the second waits for the first");
        let mut others = vec![Box::pin(ask("b", Format::Csv)), Box::pin(ask("a", Format::Parquet))];
        for other in &mut others {
            assert!(poll!(other).is_pending());
        }
        assert_eq!(running(&engine), 3, "another column and another format are other sums");
        drop(busy);
        add(&engine, "a,b\n10,20\n").await;
        assert_eq!(
            ask("a", Format::Csv).await.expect("integers").total,
            11,
            "it has the part that was added before it was asked"
        );
        assert_eq!(first.await.expect("integers"), same.await.expect("integers"));
        let totals: Vec<_> = join_all(others).await.into_iter().map(|sum| sum.expect("integers").total).collect();
        assert_eq!(totals, [2, 1]);
        assert_eq!(running(&engine), 0);
        engine.close();
    }

    #[tokio::test]
    async fn one_of_those_who_wait_computes_it_if_the_call_that_did_is_cancelled_and_all_if_it_fails() {
        let folder = TempDir::new().expect("a temporary folder");
        let engine = engine_with(&folder, "a,b\n1,2\n").await;
        for (column, expected) in [("a", Ok(1)), ("b", Ok(2))] {
            let busy = busy_workers(&engine).await;
            let mut first = Box::pin(engine.column_sum(column, Format::Csv));
            assert!(poll!(&mut first).is_pending());
            let mut others: Vec<_> = (0..3).map(|_| Box::pin(engine.column_sum(column, Format::Csv))).collect();
            for other in &mut others {
                assert!(poll!(other).is_pending());
            }
            drop(first);
            assert_eq!(running(&engine), 0);
            for other in &mut others {
                assert!(poll!(other).is_pending());
            }
            assert_eq!(running(&engine), 1, "one of them computes it for the others");
            drop(busy);
            for answer in join_all(others).await {
                assert_eq!(answer.map(|sum| sum.total).map_err(|error| error.to_string()), expected);
            }
        }
        add(&engine, "a,b\nx,2\n").await;
        let asked = (0..3).map(|_| engine.column_sum("a", Format::Csv));
        for answer in join_all(asked).await {
            assert_eq!(answer.expect_err("a text").to_string(), "part 2, row 1, column \"a\": \"x\" is not an integer");
        }
        assert_eq!(running(&engine), 0);
        engine.close();
    }

    #[tokio::test]
    async fn only_so_many_sums_are_shared() {
        let folder = TempDir::new().expect("a temporary folder");
        let engine = engine_with(&folder, "a\n1\n").await;
        let busy = busy_workers(&engine).await;
        let columns: Vec<_> = (0..=SHARED_SUMS_MAX).map(|index| format!("column {index}")).collect();
        let mut asked: Vec<_> = columns.iter().map(|column| Box::pin(engine.column_sum(column, Format::Csv))).collect();
        for sum in &mut asked {
            assert!(poll!(sum).is_pending());
        }
        assert_eq!(running(&engine), SHARED_SUMS_MAX);
        drop(busy);
        assert!(join_all(asked).await.into_iter().all(|sum| sum.is_ok_and(|sum| sum.total == 0)));
        assert_eq!(running(&engine), 0);
        engine.close();
    }
}
