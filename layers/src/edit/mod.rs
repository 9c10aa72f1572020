//! Labels set, metrics renamed, series dropped: what a client does to what it scraped, before it pushes it.
//!
//! [`EditLayer`] shows every series of a decoded payload to an [`Edit`], in one pass. Edits are put together in order, as tuples or
//! lists; what one drops those behind it are not shown. Whose series they are is not its business:
//! [`EnforceLabelsLayer`](crate::enforce) is for gateways.
//!
//! ```
//! # #[cfg(feature = "decode")] {
//! use infogw_layers::{
//!     decode::WriteRequestDecoder,
//!     edit::{DropInvalid, EditLayer, Rename, SetLabels},
//!     payload::{Edited, WriteRequest},
//! };
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), std::convert::Infallible> {
//! let edits = (SetLabels::new([("_id", "c1")]), Rename::new([("ALERTS", "alerts")]), DropInvalid::default());
//! let service = ServiceBuilder::new()
//!     .layer(EditLayer::new(edits).observed_by(|edited: &Edited| assert_eq!((edited.kept, edited.dropped), (1, 0))))
//!     .service(service_fn(async |request: http::Request<WriteRequest>| Ok::<_, std::convert::Infallible>(request.into_body())));
//! // One series, ALERTS{}, without samples.
//! let message = b"\x0a\x14\x0a\x12\x0a\x08__name__\x12\x06ALERTS";
//! let request = WriteRequestDecoder::default().decode_message(message.to_vec()).unwrap();
//! let edited = service.oneshot(http::Request::new(request)).await?;
//! assert_eq!(edited.to_message(), b"\x0a\x1f\x0a\x12\x0a\x08__name__\x12\x06alerts\x0a\x09\x0a\x03_id\x12\x02c1");
//! # Ok(()) }
//! # }
//! ```

#[cfg(feature = "anonymize")]
mod anonymize;
mod relabel;

use std::{
    convert::Infallible,
    sync::Arc,
    task::{Context, Poll},
};

use http::Request;
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    describe::{Describe, Row},
    observe::Observe,
    payload::{Edited, Keep, LabelSet, SeriesSet},
};

#[cfg(feature = "anonymize")]
pub use anonymize::{Anonymize, EmptySalt};
#[cfg(feature = "enforce")]
pub(crate) use relabel::pairs;
pub use relabel::{DropInvalid, LabelPairs, Rename, SetLabels};

const NAME: &str = "EditLayer";

/// What is done to a series. Any `Fn(&mut LabelSet<'_>) -> Keep` is one.
///
/// Several are one that does each of them in order, until one drops the series: tuples, slices, vectors. `None` and `()` do nothing.
pub trait Edit {
    /// Edits the labels of one series, and says whether it stays.
    fn edit(&self, labels: &mut LabelSet<'_>) -> Keep;
}

impl<F: Fn(&mut LabelSet<'_>) -> Keep> Edit for F {
    fn edit(&self, labels: &mut LabelSet<'_>) -> Keep {
        self(labels)
    }
}

impl Edit for () {
    fn edit(&self, _: &mut LabelSet<'_>) -> Keep {
        Keep::Yes
    }
}

impl<E: Edit> Edit for [E] {
    fn edit(&self, labels: &mut LabelSet<'_>) -> Keep {
        if self.iter().all(|edit| edit.edit(labels) == Keep::Yes) { Keep::Yes } else { Keep::No }
    }
}

impl<E: Edit> Edit for Vec<E> {
    fn edit(&self, labels: &mut LabelSet<'_>) -> Keep {
        self.as_slice().edit(labels)
    }
}

impl<E: Edit> Edit for Option<E> {
    fn edit(&self, labels: &mut LabelSet<'_>) -> Keep {
        self.as_slice().edit(labels)
    }
}

impl<E: Edit + ?Sized> Edit for Arc<E> {
    fn edit(&self, labels: &mut LabelSet<'_>) -> Keep {
        (**self).edit(labels)
    }
}

impl Edit for Box<dyn Edit + Send + Sync> {
    fn edit(&self, labels: &mut LabelSet<'_>) -> Keep {
        (**self).edit(labels)
    }
}

macro_rules! tuples {
    ($(($($edit:ident)+))+) => {$(
        impl<$($edit: Edit),+> Edit for ($($edit,)+) {
            fn edit(&self, labels: &mut LabelSet<'_>) -> Keep {
                #[allow(non_snake_case)]
                let ($($edit,)+) = self;
                if $($edit.edit(labels) == Keep::Yes)&&+ { Keep::Yes } else { Keep::No }
            }
        }
    )+};
}

tuples! {
    (A)
    (A B)
    (A B C)
    (A B C D)
    (A B C D E)
    (A B C D E F)
}

/// Edits every series of a payload.
#[derive(Debug)]
pub struct EditLayer<E, O = ()> {
    edit: Arc<E>,
    observer: O,
}

impl<E> EditLayer<E> {
    /// Does `edit` to every series.
    pub fn new(edit: E) -> Self {
        EditLayer { edit: Arc::new(edit), observer: () }
    }
}

impl<E, O> EditLayer<E, O> {
    /// Tells `observer` how many series of each payload stayed, and how many were dropped. The sender is not told.
    pub fn observed_by<P: Observe<Edited>>(self, observer: P) -> EditLayer<E, P> {
        EditLayer { edit: self.edit, observer }
    }
}

impl<E, O: Clone> Clone for EditLayer<E, O> {
    fn clone(&self) -> Self {
        EditLayer { edit: Arc::clone(&self.edit), observer: self.observer.clone() }
    }
}

impl<S, E, O: Clone> Layer<S> for EditLayer<E, O> {
    type Service = Editing<S, E, O>;

    fn layer(&self, inner: S) -> Self::Service {
        Editing { inner, layer: self.clone() }
    }
}

/// The service that [`EditLayer`] makes.
#[derive(Debug)]
pub struct Editing<S, E, O = ()> {
    inner: S,
    layer: EditLayer<E, O>,
}

impl<S: Clone, E, O: Clone> Clone for Editing<S, E, O> {
    fn clone(&self) -> Self {
        Editing { inner: self.inner.clone(), layer: self.layer.clone() }
    }
}

impl<S, E, O, P> Service<Request<P>> for Editing<S, E, O>
where
    E: Edit,
    O: Observe<Edited>,
    P: SeriesSet,
    S: Service<Request<P>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<P>) -> Self::Future {
        let EditLayer { edit, observer } = &self.layer;
        let Ok(edited) = request.body_mut().try_edit(|labels| Ok::<_, Infallible>(edit.edit(labels)));
        observer.observe(&edited);
        self.inner.call(request)
    }
}

impl<S, E, O, P> Describe<Request<P>> for Editing<S, E, O>
where
    P: SeriesSet,
    S: Describe<Request<P>>,
{
    fn describe(rows: &mut Vec<Row>) {
        rows.push(Row::new::<Request<P>>(NAME, &[]));
        S::describe(rows);
    }
}
