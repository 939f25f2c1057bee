//! The answer of `tally.v1.Tally/Sum`.

use std::time::Instant;

use tonic::{Extensions, Status};

use super::{
    call_log::CallLog,
    convert::{to_format, to_format_sum, to_status},
};
use crate::{
    engine::Engine,
    error::{Error, logged::Logged, quoted::Quoted},
    model::format::Format,
    proto::pb::tally::{SumRequest, SumResponse},
};

/// Sums a column from each of the formats.
pub(super) async fn sum(engine: &Engine, request: SumRequest, extensions: &Extensions) -> Result<SumResponse, Status> {
    let log = CallLog::start("Tally/Sum", extensions);
    let SumRequest { column, formats } = request;
    let summed = sums(engine, &column, &formats).await;
    let (peer, column, duration_ms) = (log.peer(), Quoted(&column), log.end());
    match summed {
        Ok(response) => {
            let total = response.sums.first().map(|sum| sum.total);
            tracing::info!(call = "Tally/Sum", peer, %column, total, duration_ms, "summed");
            Ok(response)
        }
        Err(error) => {
            tracing::warn!(call = "Tally/Sum", peer, %column, error = %Logged(&error), duration_ms, "refused");
            Err(to_status(&error))
        }
    }
}

async fn sums(engine: &Engine, column: &str, formats: &[i32]) -> Result<SumResponse, Error> {
    let formats = if formats.is_empty() {
        vec![Format::Parquet]
    } else {
        formats.iter().map(|&format| to_format(format)).collect::<Result<_, _>>()?
    };
    if formats.len() > 2 || formats.first() == formats.get(1) {
        return Err(Error::Malformed("formats: each format may be given once".to_owned()));
    }
    let mut sums = Vec::new();
    for format in formats {
        let started = Instant::now();
        let sum = engine.column_sum(column, format).await?;
        sums.push(to_format_sum(sum, format, started.elapsed()));
    }
    Ok(SumResponse { sums, table_parts: engine.parts_count() as u64 })
}
