//! The role `executor`: Ballista's executor, with the operator that reads parts. It runs no other plans: whoever reaches a
//! scheduler could otherwise have it read and write any file of this machine.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::Arc,
};

use ballista_core::{
    ConfigProducer, JobId,
    config::TaskSchedulingPolicy,
    error::{BallistaError, Result},
    execution_plans::{ShuffleReaderExec, ShuffleWriterExec, SortShuffleWriterExec},
    extension::{EndpointOverrideFn, SessionConfigExt},
    utils::default_config_producer,
};
use ballista_executor::{
    execution_engine::{DefaultExecutionEngine, ExecutionEngine, QueryStageExecutor},
    executor_process::{ExecutorProcessConfig, start_executor_process},
};
use datafusion::{
    datasource::{memory::MemorySourceConfig, source::DataSourceExec},
    error::DataFusionError,
    physical_plan::{ExecutionPlan, coalesce_partitions::CoalescePartitionsExec},
    prelude::SessionConfig,
};
use tally::engine::part_reader::PartReader;
use tokio::net::TcpListener;

use crate::{
    codec::Codec,
    command_line::{HEARTBEAT_S, say},
    engine::MESSAGE_BYTES_MAX,
    merge_groups::MergeGroupsExec,
    read_parts::ReadPartsExec,
    tls::{BEHIND_TUNNEL, Tls},
};

/// After how long without a change an executor removes the rows of a job that no server has removed: longer than a job may take
/// (`--answer-within-s`).
const JOB_DATA_S: u64 = 2 * 86_400;

/// Where an executor listens, and what it works with.
pub struct Executor<'a> {
    /// Host and port of the scheduler.
    pub scheduler: (String, u16),
    /// The data folder of the server.
    pub data: &'a Path,
    /// The address to listen on.
    pub address: IpAddr,
    /// The name by which others reach it; without one, the address.
    pub host: Option<String>,
    /// The ports for tasks and for rows.
    pub ports: (u16, u16),
    /// Tasks that run at once.
    pub slots: usize,
    /// The folder for rows that others will fetch.
    pub work_dir: String,
    /// Mutual TLS, if it is used.
    pub tls: Option<Tls>,
}

/// Waits for the scheduler, and runs the executor until a signal ends it.
///
/// Errors: the data folder cannot be read; the scheduler refuses it; a port cannot be used.
pub async fn run(executor: Executor<'_>) -> Result<()> {
    let reader = PartReader::open(executor.data, Path::new(&executor.work_dir))
        .map_err(|error| BallistaError::General(error.to_string()))?;
    let message_bytes_max = u32::try_from(MESSAGE_BYTES_MAX).unwrap_or(u32::MAX);
    let bind_address = match &executor.tls {
        Some(tls) => {
            for port in [executor.ports.0, executor.ports.1] {
                let listener = TcpListener::bind((executor.address, port)).await?;
                tls.tunnel(listener, SocketAddr::new(BEHIND_TUNNEL, port));
            }
            BEHIND_TUNNEL
        }
        None => executor.address,
    };
    let endpoints = executor.tls.as_ref().map(Tls::endpoints);
    let config = ExecutorProcessConfig {
        bind_host: bind_address.to_string(),
        external_host: Some(executor.host.unwrap_or_else(|| executor.address.to_string())),
        grpc_port: executor.ports.0,
        port: executor.ports.1,
        scheduler_host: executor.scheduler.0,
        scheduler_port: executor.scheduler.1,
        scheduler_connect_timeout_seconds: 10, // with any number but 0 it tries until there is one
        vcores: executor.slots,
        task_scheduling_policy: TaskSchedulingPolicy::PushStaged,
        work_dir: Some(executor.work_dir),
        job_data_ttl_seconds: JOB_DATA_S,
        job_data_clean_up_interval_seconds: 60,
        grpc_max_decoding_message_size: message_bytes_max,
        grpc_max_encoding_message_size: message_bytes_max,
        executor_heartbeat_interval_seconds: HEARTBEAT_S,
        override_config_producer: Some(config_producer(endpoints.clone())),
        override_create_grpc_client_endpoint: endpoints,
        override_physical_codec: Some(Arc::new(Codec::new(Some(Arc::new(reader))))),
        override_execution_engine: Some(Arc::new(OurPlansOnly(DefaultExecutionEngine::new()))),
        ..ExecutorProcessConfig::default()
    };
    say(&format!("starting: executor {}, ports {} and {}", executor.address, config.grpc_port, config.port))?;
    start_executor_process(Arc::new(config)).await
}

/// What tasks are configured with: they fetch rows of other executors.
fn config_producer(endpoints: Option<EndpointOverrideFn>) -> ConfigProducer {
    Arc::new(move || {
        let config = default_config_producer();
        match &endpoints {
            Some(endpoints) => config
                .with_ballista_override_create_grpc_client_endpoint(Arc::clone(endpoints))
                .with_ballista_use_tls(true),
            None => config,
        }
    })
}

/// Refuses all plans except those of the server.
struct OurPlansOnly(DefaultExecutionEngine);

impl ExecutionEngine for OurPlansOnly {
    fn create_query_stage_exec(
        &self,
        job_id: JobId,
        stage_id: usize,
        task_id: usize,
        global_output_partition_ids: Vec<usize>,
        plan: Arc<dyn ExecutionPlan>,
        work_dir: &str,
        config: &SessionConfig,
    ) -> datafusion::error::Result<Arc<dyn QueryStageExecutor>> {
        check(plan.as_ref())?;
        let ids = global_output_partition_ids;
        self.0.create_query_stage_exec(job_id, stage_id, task_id, ids, plan, work_dir, config)
    }
}

fn check(plan: &dyn ExecutionPlan) -> datafusion::error::Result<()> {
    let is_in_memory = |source: &DataSourceExec| source.data_source().downcast_ref::<MemorySourceConfig>().is_some();
    let is_ours = plan.is::<ReadPartsExec>()
        || plan.is::<MergeGroupsExec>()
        || is_leaf_of_a_test(plan)
        || plan.is::<CoalescePartitionsExec>()
        || plan.is::<ShuffleReaderExec>()
        || plan.is::<ShuffleWriterExec>()
        || plan.is::<SortShuffleWriterExec>()
        || plan.downcast_ref::<DataSourceExec>().is_some_and(is_in_memory);
    if !is_ours {
        return Err(DataFusionError::Plan(format!("this executor reads parts of tally, and runs no {}", plan.name())));
    }
    plan.children().into_iter().try_for_each(|child| check(child.as_ref()))
}

#[cfg(feature = "faults")]
fn is_leaf_of_a_test(plan: &dyn ExecutionPlan) -> bool {
    plan.is::<crate::leaf::LeafExec>()
}

#[cfg(not(feature = "faults"))]
fn is_leaf_of_a_test(_plan: &dyn ExecutionPlan) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use datafusion::{arrow::datatypes::Schema, physical_plan::empty::EmptyExec};
    use tally::{engine::runtime::part_engine::PartQuestion, model::format::Format};

    use super::*;
    use crate::wire::{parts, question::Question};

    #[test]
    fn only_plans_of_the_server_are_run() {
        let source = MemorySourceConfig::try_new_exec(&[vec![]], parts::schema(), None).expect("a source");
        let question = Question::Parts(PartQuestion { column: "a".into(), format: Format::Csv });
        let read = Arc::new(ReadPartsExec::new(source, question.clone(), None));
        check(&CoalescePartitionsExec::new(read)).expect("ours");
        let other = Arc::new(EmptyExec::new(Arc::new(Schema::empty())));
        let error = check(&ReadPartsExec::new(other, question, None)).expect_err("not ours");
        assert!(error.to_string().contains("runs no EmptyExec"), "{error}");
    }
}
