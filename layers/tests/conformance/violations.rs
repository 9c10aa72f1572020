//! Layers that are wrong in one way each: the kit has to find it.

use std::{
    cell::RefCell,
    future::poll_fn,
    mem::ManuallyDrop,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};

use http::{Method, Request};
use infogw_layers::{
    conformance::{Conformance, Second},
    describe::{Describe, Row},
    rate_limit::{Due, Quota, RateLimit, RateLimitLayer},
    rejection::{Reason, Rejection},
};
use tower::{Layer, Service};

use crate::{MINUTE, fixtures::unique, unit};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    CallsAnUnreadyClone,
    IsReadyTooEarly,
    PassesOnReadinessThoughItWaits,
    LosesTheReadinessError,
    SharesReadinessAmongClones,
    LeaksWhatIsCancelled,
    ForgetsToWake,
    CallsInsideWhenItRefuses,
    RefusesForAnotherReason,
    KeepsItsReasonsToItself,
    KeepsItsNameToItself,
    TakesTheBlameForOthers,
}

const NAME: &str = "Broken";

/// Refuses `DELETE`, in principle.
#[derive(Clone, Copy)]
struct Broken(Fault);

impl<S> Layer<S> for Broken {
    type Service = BrokenService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        BrokenService { inner: Rc::new(RefCell::new(inner)), fault: self.0 }
    }
}

struct BrokenService<S> {
    inner: Rc<RefCell<S>>,
    fault: Fault,
}

impl<S: Clone> Clone for BrokenService<S> {
    fn clone(&self) -> Self {
        let inner = match self.fault {
            Fault::SharesReadinessAmongClones => Rc::clone(&self.inner),
            _ => Rc::new(RefCell::new(self.inner.borrow().clone())),
        };
        BrokenService { inner, fault: self.fault }
    }
}

impl<S> Service<Request<()>> for BrokenService<S>
where
    S: Service<Request<()>, Error = Rejection> + Clone + 'static,
{
    type Response = S::Response;
    type Error = Rejection;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, Rejection>>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Rejection>> {
        match (self.fault, self.inner.borrow_mut().poll_ready(cx)) {
            (Fault::IsReadyTooEarly, _) | (Fault::LosesTheReadinessError, Poll::Ready(_)) => Poll::Ready(Ok(())),
            (_, ready) => ready,
        }
    }

    fn call(&mut self, request: Request<()>) -> Self::Future {
        let fault = self.fault;
        let refused = request.method() == Method::DELETE;
        if refused && fault != Fault::CallsInsideWhenItRefuses {
            let reason = if fault == Fault::RefusesForAnotherReason { Reason::Body } else { Reason::Method };
            let rejection = Rejection::new(reason, "use POST");
            let rejection = if fault == Fault::KeepsItsNameToItself { rejection } else { rejection.by(NAME) };
            return Box::pin(async move { Err(rejection) });
        }
        let inner = match fault {
            Fault::CallsAnUnreadyClone => self.inner.borrow().clone().call(request),
            _ => self.inner.borrow_mut().call(request),
        };
        Box::pin(async move {
            if fault == Fault::ForgetsToWake {
                let mut asleep = true;
                poll_fn(|_| if std::mem::take(&mut asleep) { Poll::Pending } else { Poll::Ready(()) }).await;
            }
            let answer = if fault == Fault::LeaksWhatIsCancelled {
                let mut inner = ManuallyDrop::new(Box::pin(inner));
                let answer = inner.as_mut().await;
                drop(ManuallyDrop::into_inner(inner));
                answer
            } else {
                inner.await
            };
            match answer {
                _ if refused => Err(Rejection::new(Reason::Method, "use POST").by(NAME)),
                Err(rejection) if fault == Fault::TakesTheBlameForOthers => Err(rejection.relayed_by(NAME)),
                answer => answer,
            }
        })
    }
}

impl<S: Describe<Request<()>>> Describe<Request<()>> for BrokenService<S> {
    fn describe(rows: &mut Vec<Row>) {
        rows.push(Row::new::<Request<()>>(NAME, &[Reason::Body]));
        S::describe(rows);
    }
}

/// What the kit says of a layer with `fault`; "" if it finds nothing.
fn verdict(fault: Fault) -> String {
    let request = |method, path: &str| Request::builder().method(method).uri(path).body(()).unwrap();
    let conformance = match fault {
        Fault::PassesOnReadinessThoughItWaits => {
            Conformance::waiting(Broken(fault), move || request(Method::POST, "/"), unit)
        }
        _ => Conformance::computing(Broken(fault), move || request(Method::POST, "/"), unit),
    };
    let conformance = conformance.refuses(Reason::Method, move || request(Method::DELETE, "/"));
    said(async {
        conformance.readiness().await;
        conformance.clones().await;
        conformance.cancellation().await;
        conformance.refusals().await;
        if matches!(fault, Fault::KeepsItsReasonsToItself | Fault::KeepsItsNameToItself) {
            conformance.description().await;
        }
    })
}

/// What a check panics with.
fn said(check: impl Future<Output = ()>) -> String {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let Err(panic) = catch_unwind(AssertUnwindSafe(|| runtime.block_on(check))) else { return String::new() };
    match panic.downcast::<String>() {
        Ok(said) => *said,
        Err(panic) => (*panic.downcast::<&str>().unwrap()).to_owned(),
    }
}

#[test]
fn what_is_wrong_is_found() {
    let rows = [
        (Fault::CallsAnUnreadyClone, "the inner service was called without having been ready"),
        (Fault::IsReadyTooEarly, "a layer that computes is not ready when the inner service is not"),
        (Fault::PassesOnReadinessThoughItWaits, "a layer that waits is ready when nothing inside is"),
        (Fault::LosesTheReadinessError, "the inner service's readiness failed, and that was lost"),
        (Fault::SharesReadinessAmongClones, "the clone is ready by the readiness of the original"),
        (Fault::LeaksWhatIsCancelled, "a future was dropped, and that of the inner service was not"),
        (Fault::ForgetsToWake, "the future is pending, and nothing woke its task"),
        (Fault::CallsInsideWhenItRefuses, "the inner service was called for a request that was refused"),
        (Fault::RefusesForAnotherReason, "refused for another reason than foretold, or not at all"),
        (Fault::KeepsItsReasonsToItself, "refuses as Broken with Method, which its description does not name"),
        (Fault::KeepsItsNameToItself, "refuses with Method, and does not say which layer it is"),
        (Fault::TakesTheBlameForOthers, "it says that it refused what failed inside"),
    ];
    for (fault, expected) in rows {
        let verdict = verdict(fault);
        assert!(verdict.contains(expected), "{fault:?}: {verdict}");
    }
    assert_eq!(verdict(Fault::None), "");
}

/// Ready by itself, but with the inner service's readiness in hand while it waits.
#[test]
fn readiness_that_is_held_while_waiting_is_found() {
    #[derive(Clone)]
    struct Hoards<S>(S);
    impl<S> Service<Request<()>> for Hoards<S>
    where
        S: Service<Request<()>, Error = Rejection> + Clone + 'static,
    {
        type Response = S::Response;
        type Error = Rejection;
        type Future = Pin<Box<dyn Future<Output = Result<S::Response, Rejection>>>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Rejection>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, request: Request<()>) -> Self::Future {
            let mut inner = self.0.clone();
            Box::pin(async move {
                poll_fn(|cx| inner.poll_ready(cx)).await?;
                if request.method() == Method::PUT {
                    std::future::pending::<()>().await;
                }
                inner.call(request).await
            })
        }
    }
    let layer = tower::layer::layer_fn(Hoards);
    let conformance =
        Conformance::waiting(layer, || Request::new(()), unit).stalls_on(|| Request::put("/").body(()).unwrap());
    let said = said(conformance.readiness());
    assert!(said.contains("it holds the inner service's readiness while it waits for something else"), "{said}");
}

#[test]
fn state_that_is_not_shared_is_found() {
    type Charge = fn(&Request<String>) -> Option<Due<String>>;
    struct Afresh;
    impl<S> Layer<S> for Afresh {
        type Service = RateLimit<S, Charge>;

        fn layer(&self, inner: S) -> Self::Service {
            let charge: Charge =
                |request| Some(Due { key: request.body().clone(), cost: 1, quota: Quota::one_per(MINUTE)? });
            RateLimitLayer::new(charge).layer(inner)
        }
    }
    let conformance = Conformance::computing(Afresh, || Request::new(unique()), unit);
    let alike = || {
        let key = unique();
        [Request::new(key.clone()), Request::new(key)]
    };
    let said = said(conformance.sharing(alike, Second::Refused(Reason::RateLimited)));
    assert!(said.contains("state is not shared"), "{said}");
}
