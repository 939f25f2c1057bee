//! Unit tests of packing: the memory that it takes.

use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use tokio::time::sleep;

use crate::{
    engine::Engine,
    error::Error,
    limits::{Limits, SMALL_CONVERSION_BYTES},
    model::{durability::Durability, format::Format},
};

const PARTS: u64 = 300;
const CSV: &str = "x\n1234567\n";

/// While a segment is written slowly, others get the memory for which they wait, and the segment is complete nevertheless.
#[tokio::test]
async fn others_do_not_wait_for_a_segment_that_is_written_slowly() {
    let folder = tempfile::TempDir::new().expect("a folder");
    // A step reads at most 256 parts, so there is a pause with a Parquet file that has begun.
    let limits = Limits { pack_bytes_per_s: CSV.len() as u64 * 256, ..Limits::default() };
    let opened = Engine::open(folder.path(), Durability::None, limits).await;
    let (engine, _) = opened.expect("a data folder");
    for _part in 0..PARTS {
        let body = stream::iter([Ok::<_, Error>(Bytes::from_static(CSV.as_bytes()))]);
        engine.upload(body).await.expect("uploaded");
    }
    let context = std::sync::Arc::clone(&engine.context);
    let packed = tokio::spawn(async move { super::pack_now(&context).await });
    let pool = &engine.context.small_conversions;
    while pool.available() == SMALL_CONVERSION_BYTES {
        assert!(!packed.is_finished(), "it took no memory");
        sleep(Duration::from_millis(1)).await;
    }
    let all = pool.reserve(SMALL_CONVERSION_BYTES).await.expect("memory");
    // A Parquet file that is complete would be in this folder.
    let drafts: Vec<_> = std::fs::read_dir(folder.path().join("tmp")).expect("a folder").collect();
    assert!(drafts.is_empty(), "it had to be written to the end first: {drafts:?}");
    drop(all);
    assert_eq!(packed.await.expect("no panic").expect("packed"), 1);
    for format in [Format::Csv, Format::Parquet] {
        let sum = engine.column_sum("x", format).await.expect("a sum");
        assert_eq!((sum.total, sum.read.parts), (1_234_567 * 300, PARTS), "{format}");
    }
    engine.close();
}
