//! Divides the file descriptors that the process may have among connections, uploads and long calls.

use std::{io, time::Duration};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::{connections::Bounds, http::HTTP_SHORT_HEAD_MAX};
use crate::{
    error::Error,
    limits::{
        CONNECTION_WAITS_MAX, CONNECTIONS_MAX, CONNECTIONS_SPARE, DESCRIPTORS_BASE, DESCRIPTORS_MIN,
        DESCRIPTORS_PER_LONG_CALL, DESCRIPTORS_PER_UPLOAD, HTTP_CONNECTION_WAITS_MAX, HTTP_CONNECTIONS_MAX,
        HTTP_CONNECTIONS_SPARE, HTTP_LONG_CALLS_MAX, PROBE_CONNECTIONS_MAX, TLS_CONNECTIONS_MAX,
        TLS_WIDE_CONNECTIONS_MAX, UPLOADS_MAX, WIDE_CONNECTIONS_MAX,
    },
};

/// How long a gRPC connection that is closed for another may take to finish the calls that have arrived.
const GRPC_CLOSE_TIMEOUT: Duration = Duration::from_millis(100);

/// The descriptors that are used if there are enough of them.
const DESCRIPTORS_WANTED: usize = CONNECTIONS_MAX
    + CONNECTION_WAITS_MAX
    + HTTP_CONNECTIONS_MAX
    + HTTP_CONNECTION_WAITS_MAX
    + PROBE_CONNECTIONS_MAX
    + 1
    + UPLOADS_MAX * DESCRIPTORS_PER_UPLOAD
    + HTTP_LONG_CALLS_MAX * DESCRIPTORS_PER_LONG_CALL;

/// The limits of everything that uses file descriptors.
#[derive(Clone, Copy, Debug)]
pub(super) struct Capacity {
    pub(super) grpc: Bounds,
    /// gRPC connections that are wide.
    pub(super) wide_max: usize,
    pub(super) http: Bounds,
    pub(super) probes: Bounds,
    pub(super) uploads_max: usize,
    pub(super) long_calls_max: usize,
}

impl Capacity {
    /// Raises the soft limit of the process to its hard limit, and divides the descriptors.
    ///
    /// Errors: the limit is too low to serve any client.
    pub(super) fn find(has_tls: bool) -> Result<Self, Error> {
        let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
        let raised = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
        let limit = if raised.is_ok() { maximum } else { current };
        let descriptors = limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
        if descriptors < DESCRIPTORS_MIN {
            let needed =
                format!("the process may have {descriptors} open files and needs {DESCRIPTORS_MIN}: see ulimit -n");
            return Err(Error::io("the limit of open files")(io::Error::other(needed)));
        }
        let capacity = Self::of(descriptors, has_tls);
        if capacity.uploads_max < UPLOADS_MAX {
            tracing::warn!(
                open_files_max = descriptors,
                uploads_max = capacity.uploads_max,
                connections_max = capacity.grpc.served,
                http_connections_max = capacity.http.served,
                "few files may be open, so fewer connections and uploads are taken at once: see ulimit -n"
            );
        }
        Ok(capacity)
    }

    fn of(descriptors: usize, has_tls: bool) -> Self {
        const SPREAD: usize = DESCRIPTORS_WANTED - (DESCRIPTORS_MIN - DESCRIPTORS_BASE);
        let free = descriptors.saturating_sub(DESCRIPTORS_MIN).min(SPREAD);
        // Grows linearly from the minimum, at the lowest limit, to the maximum.
        let share = |max: usize, min: usize| min + (max - min) * free / SPREAD;
        let (connections_max, wide_max) = match has_tls {
            true => (TLS_CONNECTIONS_MAX, TLS_WIDE_CONNECTIONS_MAX),
            false => (CONNECTIONS_MAX, WIDE_CONNECTIONS_MAX),
        };
        let (served, spare) = (share(connections_max, 8), share(CONNECTIONS_SPARE, 2));
        let grpc = Bounds {
            served,
            used: served - spare,
            waiting: share(CONNECTION_WAITS_MAX, 2),
            silent_max: None,
            close_timeout: GRPC_CLOSE_TIMEOUT,
        };
        let (served, spare) = (share(HTTP_CONNECTIONS_MAX, 4), share(HTTP_CONNECTIONS_SPARE, 1));
        let http = Bounds {
            served,
            used: served - spare,
            waiting: share(HTTP_CONNECTION_WAITS_MAX, 1),
            silent_max: Some(HTTP_SHORT_HEAD_MAX),
            close_timeout: Duration::ZERO,
        };
        let served = share(PROBE_CONNECTIONS_MAX, 2);
        let probes = Bounds { served, used: served, waiting: 1, ..http };
        Self {
            grpc,
            wide_max,
            http,
            probes,
            uploads_max: share(UPLOADS_MAX, 2),
            long_calls_max: share(HTTP_LONG_CALLS_MAX, 1),
        }
    }

    #[cfg(test)]
    fn descriptors(&self) -> usize {
        let connections = [self.grpc, self.http, self.probes].map(|bounds| bounds.served + bounds.waiting);
        DESCRIPTORS_BASE
            + connections.iter().sum::<usize>()
            + self.uploads_max * DESCRIPTORS_PER_UPLOAD
            + self.long_calls_max * DESCRIPTORS_PER_LONG_CALL
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_together_fits_whatever_the_limit() {
        for limit in DESCRIPTORS_MIN..2000 {
            let with_tls = Capacity::of(limit, true);
            assert!(with_tls.descriptors() <= limit && with_tls.grpc.used > 0, "{limit}: {with_tls:?}");
            let capacity = Capacity::of(limit, false);
            assert!(capacity.descriptors() <= limit, "{limit}: {capacity:?}");
            assert!(capacity.grpc.used > 0 && capacity.http.used > capacity.long_calls_max, "{limit}: {capacity:?}");
        }
    }

    #[test]
    fn with_enough_descriptors_the_bounds_are_those_of_the_memory_plan() {
        for limit in [1024, 4096, usize::MAX] {
            let with_tls = Capacity::of(limit, true);
            assert_eq!((with_tls.grpc.served, with_tls.wide_max), (TLS_CONNECTIONS_MAX, TLS_WIDE_CONNECTIONS_MAX));
            let capacity = Capacity::of(limit, false);
            assert_eq!((capacity.grpc.served, capacity.http.served), (CONNECTIONS_MAX, HTTP_CONNECTIONS_MAX));
            assert_eq!((capacity.uploads_max, capacity.long_calls_max), (UPLOADS_MAX, HTTP_LONG_CALLS_MAX));
            assert_eq!(capacity.grpc.used, CONNECTIONS_MAX - CONNECTIONS_SPARE);
        }
    }
}
