//! The role `scheduler`: Ballista's scheduler, which knows our operator. It keeps everything in memory: after a restart, executors
//! register again, and servers ask again.

use std::{net::SocketAddr, sync::Arc};

use ballista_core::{config::TaskSchedulingPolicy, error::Result};
use ballista_scheduler::{
    cluster::BallistaCluster,
    config::SchedulerConfig,
    scheduler_process::{create_scheduler, start_grpc_service_with_listener},
};
use datafusion_proto::protobuf::{LogicalPlanNode, PhysicalPlanNode};
use tokio::net::TcpListener;

use crate::{
    codec::Codec,
    command_line::{EXECUTOR_TIMEOUT_S, say},
    engine::MESSAGE_BYTES_MAX,
    tls::{BEHIND_TUNNEL, Tls},
};

/// Runs the scheduler until the process is ended.
///
/// Errors: the address cannot be used.
pub async fn run(address: SocketAddr, host: Option<String>, tls: Option<Tls>) -> Result<()> {
    let listener = TcpListener::bind(address).await?;
    let address = listener.local_addr()?;
    let config = Arc::new(config(address, host, tls.as_ref()));
    config.validate()?;
    let cluster = BallistaCluster::new_from_config(&config).await?;
    let scheduler = create_scheduler::<LogicalPlanNode, PhysicalPlanNode>(cluster, config).await?;
    let listener = match tls {
        Some(tls) => {
            let behind = TcpListener::bind((BEHIND_TUNNEL, address.port())).await?;
            tls.tunnel(listener, behind.local_addr()?);
            behind
        }
        None => listener,
    };
    say(&format!("ready: scheduler {address}"))?;
    start_grpc_service_with_listener(listener, scheduler).await
}

fn config(address: SocketAddr, host: Option<String>, tls: Option<&Tls>) -> SchedulerConfig {
    let message_bytes_max = u32::try_from(MESSAGE_BYTES_MAX).unwrap_or(u32::MAX);
    SchedulerConfig {
        // Executors report to this address.
        external_host: host.unwrap_or_else(|| address.ip().to_string()),
        bind_host: address.ip().to_string(),
        bind_port: address.port(),
        // Only tasks that were pushed can be cancelled.
        scheduling_policy: TaskSchedulingPolicy::PushStaged,
        // A server needs to reach this address only.
        enable_embedded_flight_proxy: true,
        executor_timeout_seconds: EXECUTOR_TIMEOUT_S,
        expire_dead_executor_interval_seconds: 1,
        no_executors_grace_period_seconds: EXECUTOR_TIMEOUT_S,
        // Servers remove the data of their jobs; this is for those that could not.
        finished_job_data_clean_up_interval_seconds: 60,
        finished_job_state_clean_up_interval_seconds: 60,
        grpc_server_max_decoding_message_size: message_bytes_max,
        grpc_server_max_encoding_message_size: message_bytes_max,
        grpc_client_max_message_size: message_bytes_max,
        use_tls: tls.is_some(),
        override_create_grpc_client_endpoint: tls.map(Tls::endpoints),
        override_physical_codec: Some(Arc::new(Codec::new(None))),
        ..SchedulerConfig::default()
    }
}
