//! The future of layers that either refuse at once or call the service inside.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use pin_project_lite::pin_project;

use crate::rejection::Rejection;

pin_project! {
    /// A refusal at once, or the answer of the service inside.
    #[derive(Debug)]
    pub struct CallOrRefuse<F> {
        #[pin]
        state: State<F>,
    }
}

pin_project! {
    #[derive(Debug)]
    #[project = StateProj]
    enum State<F> {
        Call {
            #[pin]
            inner: F,
        },
        Refuse {
            rejection: Option<Rejection>,
        },
    }
}

impl<F> CallOrRefuse<F> {
    pub(crate) fn call(inner: F) -> Self {
        CallOrRefuse { state: State::Call { inner } }
    }

    pub(crate) fn refuse(rejection: Rejection) -> Self {
        CallOrRefuse { state: State::Refuse { rejection: Some(rejection) } }
    }
}

impl<F, R, E> Future for CallOrRefuse<F>
where
    F: Future<Output = Result<R, E>>,
    E: Into<Rejection>,
{
    type Output = Result<R, Rejection>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            StateProj::Call { inner } => inner.poll(cx).map_err(Into::into),
            // `None`: polled again after completion, which futures need not bear.
            StateProj::Refuse { rejection } => {
                rejection.take().map_or(Poll::Pending, |rejection| Poll::Ready(Err(rejection)))
            }
        }
    }
}
