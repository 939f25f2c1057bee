//! The layer that counts each call by its method and its status code, which gRPC sends after the answer, and ends its line in
//! the audit log.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http::{HeaderMap, Request, Response};
use http_body_util::BodyExt;
use tonic::{Code, Status, body::Body};
use tower::Service;

use crate::{
    access::audit::{AuditedCall, Outcome},
    api::metrics::{GrpcCall, Metrics},
};

/// The methods that are counted by name. A test compares this with the proto files.
const METHODS: [&str; 18] = [
    "/Table/Upload",
    "/Table/ColumnSum",
    "/Table/ColSum",
    "/NumStore/SetNum",
    "/NumStore/Fact",
    "/tally.v1.Tally/Upload",
    "/tally.v1.Tally/ListParts",
    "/tally.v1.Tally/ListColumns",
    "/tally.v1.Tally/ListFiles",
    "/tally.v1.Tally/Sum",
    "/tally.v1.Tally/GroupSum",
    "/tally.v1.Tally/ListQuarantine",
    "/tally.v1.Tally/Forget",
    "/tally.v1.Tally/Pack",
    "/tally.v1.Tally/RemovePart",
    "/tally.v1.Tally/RestorePart",
    "/tally.v1.Tally/ListRemoved",
    "/tally.v1.Tally/Verify",
];

/// Whether a call is one of Tally's own services, and not of health or reflection.
pub(super) fn is_own_method(path: &str) -> bool {
    METHODS.contains(&path)
}

/// Counts the calls of the services below it.
#[derive(Clone)]
pub(crate) struct MetricsService<S> {
    pub(crate) inner: S,
    pub(crate) metrics: Arc<Metrics>,
    /// Whether calls may have a line in the audit log.
    pub(crate) has_audit: bool,
}

impl<S> Service<Request<Body>> for MetricsService<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let path = request.uri().path();
        let method = METHODS.into_iter().find(|method| *method == path).unwrap_or("/other");
        let audited = if self.has_audit { request.extensions().get().cloned() } else { None };
        let mut call = Call { metrics: Arc::clone(&self.metrics), method: &method[1..], ended: false, audited };
        let answered = self.inner.call(request);
        Box::pin(async move {
            let response = answered.await?;
            // An answer without a message has its status in the headers.
            call.end(response.headers());
            Ok(response.map(|body| {
                Body::new(body.map_frame(move |frame| {
                    if let Some(trailers) = frame.trailers_ref() {
                        call.end(trailers);
                    }
                    frame
                }))
            }))
        })
    }
}

/// A running call. If it is dropped before its status was sent, its client has cancelled it.
struct Call {
    metrics: Arc<Metrics>,
    method: &'static str,
    ended: bool,
    audited: Option<AuditedCall>,
}

impl Call {
    /// Counts the call if these headers or trailers end it.
    fn end(&mut self, headers: &HeaderMap) {
        if let Some(status) = Status::from_header_map(headers)
            && !self.ended
        {
            self.count(status.code());
        }
    }

    fn count(&mut self, code: Code) {
        self.ended = true;
        let code_name = format!("{code:?}");
        if let Some(audited) = &self.audited {
            audited.end(outcome_of(code), &code_name);
        }
        self.metrics.count_grpc(&GrpcCall { method: self.method, code: code_name });
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if !self.ended {
            self.count(Code::Cancelled);
        }
    }
}

fn outcome_of(code: Code) -> Outcome {
    match code {
        Code::Ok => Outcome::Ok,
        Code::Cancelled | Code::Aborted => Outcome::Cancelled, // an upload that is interrupted is aborted
        Code::Unauthenticated | Code::PermissionDenied | Code::ResourceExhausted => Outcome::Refused,
        _ => Outcome::Error,
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs};

    use super::*;

    #[test]
    fn every_method_is_counted_by_its_name() {
        let mut methods = BTreeSet::new();
        for entry in fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/proto")).expect("proto/") {
            let text = fs::read_to_string(entry.expect("an entry").path()).expect("readable");
            let (mut package, mut service) = (String::new(), String::new());
            for line in text.lines().map(str::trim) {
                let name = |rest: &str| rest.split(['(', ' ', ';', '{']).next().unwrap_or_default().to_owned();
                if let Some(rest) = line.strip_prefix("package ") {
                    package = name(rest) + ".";
                } else if let Some(rest) = line.strip_prefix("service ") {
                    service = name(rest);
                } else if let Some(rest) = line.strip_prefix("rpc ") {
                    methods.insert(format!("/{package}{service}/{}", name(rest)));
                }
            }
        }
        assert_eq!(methods, METHODS.into_iter().map(String::from).collect());
    }
}
