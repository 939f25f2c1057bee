//! The layer that refuses calls that their caller may not make: see `src/access/`.
//!
//! The server decides as soon as a call's head is there, because the head is dropped then, and puts the [`Verdict`] into the
//! extensions. So a refused call uses no permit, and no byte of its body is read.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    net::IpAddr,
    task::{Context, Poll},
};

use futures_util::future::Either;
use http::{Extensions, Request, Response};
use tonic::{Status, body::Body};
use tower::Service;

use super::convert::push_back;
use crate::{
    access::{Access, Allowed, Refusal, Shown, quotas::Meter, rules::of_call},
    api::caller::Caller,
};

/// Whether a call is allowed, in the extensions of its request.
#[derive(Clone)]
pub(crate) struct Verdict(Result<(Allowed, Option<Meter>), Refusal>);

impl Verdict {
    pub(crate) fn of(access: &Access, path: &str, shown: &Shown, peer: Option<IpAddr>) -> Self {
        Self(access.admit(of_call(path), shown, peer))
    }

    pub(crate) fn is_refusal(&self) -> bool {
        self.0.is_err()
    }

    /// Whether the call of these extensions will be refused.
    pub(crate) fn refuses(extensions: &Extensions) -> bool {
        extensions.get().is_none_or(Self::is_refusal)
    }
}

/// The status of a call that its caller may not make.
pub(super) fn status_of(refusal: &Refusal) -> Status {
    let text = refusal.to_string();
    match refusal {
        Refusal::NoToken { .. } | Refusal::Unknown { .. } => Status::unauthenticated(text),
        Refusal::TooSmall { .. } => Status::permission_denied(text),
        Refusal::TooMany(_) => {
            let mut status = Status::resource_exhausted(text);
            push_back(&mut status, 1);
            status
        }
        Refusal::NoSuchCall => Status::unimplemented(text),
    }
}

/// Refuses calls that may not reach the services below it.
#[derive(Clone)]
pub(crate) struct AccessService<S> {
    pub(crate) inner: S,
}

impl<S> Service<Request<Body>> for AccessService<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Either<S::Future, Ready<Result<Response<Body>, Infallible>>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let refused = |status: Status| Either::Right(ready(Ok(status.into_http())));
        match request.extensions_mut().remove::<Verdict>() {
            Some(Verdict(Ok((allowed, meter)))) => {
                request.extensions_mut().insert(allowed);
                if let Some(meter) = meter {
                    request.extensions_mut().insert(meter);
                }
                Either::Left(self.inner.call(request))
            }
            Some(Verdict(Err(refusal))) => {
                let (call, peer) = (request.uri().path(), Caller::peer_of(request.extensions()));
                tracing::warn!(call, peer, reason = %refusal, "refused");
                refused(status_of(&refusal))
            }
            None => refused(Status::internal("nobody has checked whether this call is allowed")),
        }
    }
}
