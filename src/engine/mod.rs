//! The engine: the one door to the table. Every surface converts its request, makes one call here and converts the
//! answer. No protocol is known below this line.
//!
//! Read in this order: [`part`], [`cell`], [`csv`], [`fold`], [`convert`], [`parquet`], [`store`], [`state`],
//! [`workers`], [`upload`], [`query`]; and beside the table [`numbers`].

pub mod cell;
pub mod convert;
pub mod csv;
pub mod fold;
pub mod numbers;
pub mod parquet;
pub mod part;
pub mod query;
pub mod state;
pub mod store;
pub mod upload;
pub mod workers;

use std::{path::Path, sync::Arc};

use bytes::Bytes;
use futures_util::Stream;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

pub use numbers::{Factorial, Key};
pub use query::{ColumnSum, Read};
pub use store::{Durability, Found, Store};

use crate::{
    error::Error,
    limits::{LARGE_CONVERSION_BYTES, Limits, NUMBER_CALLS_MAX, SMALL_CONVERSION_BYTES, WIDE_READS_MAX},
};
use part::{Format, Part, PartId, Receipt, Schema};
use state::{Lane, Shared};
use upload::Pool;
use workers::{Workers, panic_text};

/// A handle on the table; clones are handles on the same.
#[derive(Clone)]
pub struct Engine(Arc<Inner>);

struct Inner {
    state: Shared,
    workers: Workers,
    store: Arc<Store>,
    limits: Limits,
    /// Uploads that may be received at once.
    places: Arc<Semaphore>,
    /// Memory for conversions of large and of small uploads, apart, so that small ones never wait for large ones.
    large: Pool,
    small: Pool,
    /// Wide Parquet footers that may be in memory at once.
    wide_reads: Arc<Semaphore>,
    /// Calls of NumStore that may compute at once.
    number_calls: Semaphore,
}

impl Engine {
    /// Starts the workers, opens the data folder and puts it in order.
    ///
    /// Errors: the folder is in use, cannot be written, or holds parts of a newer version.
    pub async fn open(root: &Path, durability: Durability, limits: Limits) -> Result<(Self, Found), Error> {
        let state = Shared::new();
        let workers = Workers::start(state.clone()).map_err(Error::io("worker threads"))?;
        let (root, shared) = (root.to_owned(), state.clone());
        let recover = move || {
            let store = Store::open(&root, durability)?;
            let found = store.recover(|receipt| {
                let schema = upload::share_schema(&shared, Schema::of(&receipt.columns));
                let part = Arc::new(Part::of(&receipt, schema));
                shared.with(|state| state.parts.restore(part));
            })?;
            shared.with(|state| found.in_quarantine.iter().for_each(|id| state.parts.skip_to(*id)));
            Ok((store, found))
        };
        let (store, found) = workers.run(Lane::Upload, recover).await.flatten().inspect_err(|_| workers.close())?;
        let inner = Inner {
            state,
            workers,
            store: Arc::new(store),
            limits,
            places: Arc::new(Semaphore::new(limits.uploads_max)),
            large: Pool::new(LARGE_CONVERSION_BYTES),
            small: Pool::new(SMALL_CONVERSION_BYTES),
            wide_reads: Arc::new(Semaphore::new(WIDE_READS_MAX)),
            number_calls: Semaphore::new(NUMBER_CALLS_MAX),
        };
        Ok((Self(Arc::new(inner)), found))
    }

    /// Appends one CSV file, as it comes, to the table. If the returned future is dropped, the upload stops at its
    /// next slice and leaves nothing.
    ///
    /// Errors: what is wrong with the file; as many uploads as there may be; a full disk; an error of `body`.
    pub async fn upload<S>(&self, body: S) -> Result<Receipt, Error>
    where
        S: Stream<Item = Result<Bytes, Error>> + Send + Unpin + 'static,
    {
        let uploads_max = self.0.limits.uploads_max;
        let place = Arc::clone(&self.0.places).try_acquire_owned();
        let place = place.ok().ok_or(Error::TooManyUploads { uploads_max })?;
        let cancel = CancellationToken::new();
        let _cancel_on_drop = cancel.clone().drop_guard();
        let engine = self.clone();
        let task = tokio::spawn(async move {
            let _place = place; // it is free again when the work has ended, not when the caller has gone
            upload::run(engine, body, cancel).await
        });
        task.await.unwrap_or_else(|stopped| {
            Err(match stopped.try_into_panic() {
                Ok(panic) => Error::Internal(format!("an upload panicked: {}", panic_text(&*panic))),
                Err(_cancelled) => Error::Draining,
            })
        })
    }

    /// The exact sum of a column over all parts; 0 if none has it.
    ///
    /// Errors: the first cell, in part and row order, that is no integer; a column whose type is none; a total that
    /// does not fit in 64 bits; a damaged file.
    pub async fn column_sum(&self, column: &str, format: Format) -> Result<ColumnSum, Error> {
        query::column_sum(self, column, format).await
    }

    /// Some receipts in the order of their ids, at most `count_max`, at least one if any is left.
    pub async fn receipts(&self, after: Option<PartId>, count_max: usize) -> Result<Vec<Receipt>, Error> {
        query::receipts(self, after, count_max).await
    }

    /// Gives a key of NumStore a value. Returns the total of all values.
    ///
    /// Errors, which change nothing: the total would not fit in 64 bits; a key more than there may be.
    pub async fn set_number(&self, key: Key, value: i64) -> Result<i64, Error> {
        numbers::set(self, key, value).await
    }

    /// The factorial of the value of a key of NumStore.
    ///
    /// Errors: the key was never set; its value is below 0 or above 20.
    pub async fn factorial(&self, key: Key) -> Result<Factorial, Error> {
        numbers::factorial(self, key).await
    }

    /// How many parts the table has.
    pub fn parts_count(&self) -> usize {
        self.0.state.with(|state| state.parts.len())
    }

    /// Lets the workers end when their queue is empty. What is called after it fails with [`Error::Draining`].
    pub fn close(&self) {
        self.0.number_calls.close();
        self.0.workers.close();
    }
}
