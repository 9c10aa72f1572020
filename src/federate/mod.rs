//! The push client, in telemeter-client's place: a cluster's selection of metrics from its Prometheus to a gateway, or to a receive
//! endpoint.
//!
//! [`FederateFlags`] are what is written, [`Settings`] what that means. A [`Federate`] goes in rounds: each scrapes `/federate` and pushes
//! what comes of it through a [`stack`] of the same layers that the gateway is made of, in the direction of the client. A payload is
//! tried until it is taken; meanwhile nothing else is scraped, so that there is never more than one at hand. Its
//! [`listener`] shows the last one, and tells how it goes.
//!
//! ```
//! use clap::{Args as _, Command, FromArgMatches as _};
//! use infogw_proxy::federate::{Federate, FederateFlags, Settings};
//!
//! # #[tokio::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let args = ["federate", "--from=http://localhost:1", "--to-write=http://localhost:1/api/v1/write"];
//! let matches = FederateFlags::augment_args(Command::new("federate")).get_matches_from(args);
//! let flags = FederateFlags::from_arg_matches(&matches)?;
//! // Nobody listens there.
//! assert!(Federate::once(Settings::new(flags)?).await.is_err());
//! # Ok(()) }
//! ```

mod flags;
pub mod listener;
mod metrics;
mod rounds;
mod settings;
pub mod stack;

use std::{
    sync::{Arc, OnceLock},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::Request;
use infogw_layers::{
    decode::{DecodeLimits, Decoder as _, MetricFamiliesDecoder},
    encode::{Delimited, Format as _},
    observe::Observe,
    payload::{LARGEST_PAYLOAD, MOST_SERIES},
    rejection::{Reason, Rejection},
};
use tokio::sync::watch;

pub use flags::FederateFlags;
use metrics::{Failures, Metrics};
pub use settings::Settings;
use stack::{Purpose, Stack};

use crate::{gateway::StartError, traces::Traces};

/// A payload is given up when it would be older than a gateway takes, 24 hours; what is scraped may be of five minutes before.
const KEEP_FOR: Duration = Duration::from_secs(24 * 3600 - 10 * 60);

/// What was selected last: what was or would have been pushed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Selection(Arc<ArcSwap<Selected>>);

#[derive(Debug, Default)]
struct Selected {
    /// As it is pushed to a gateway.
    frames: Bytes,
    /// For the first one who looks, and then for all.
    text: OnceLock<Result<Bytes, Rejection>>,
}

impl Selection {
    fn set(&self, frames: Bytes) {
        self.0.store(Arc::new(Selected { frames, text: OnceLock::new() }));
    }

    /// As text 0.0.4.
    ///
    /// # Errors
    /// A fault of ours: what was encoded is not decoded again.
    pub(crate) fn text(&self) -> Result<Bytes, Rejection> {
        self.0.load().text()
    }
}

impl Selected {
    fn text(&self) -> Result<Bytes, Rejection> {
        self.text.get_or_init(|| self.rendered()).clone()
    }

    fn rendered(&self) -> Result<Bytes, Rejection> {
        let mut head = Request::new(());
        *head.headers_mut() = Delimited::headers();
        let limits = DecodeLimits {
            decoded: LARGEST_PAYLOAD,
            series: MOST_SERIES,
            labels: usize::MAX,
            ..DecodeLimits::default()
        };
        // It was judged when it was scraped.
        let decoder = MetricFamiliesDecoder::new(limits).max_age(Duration::MAX).drop_unusable();
        let families = decoder.decode(decoder.negotiate(&head.into_parts().0)?, self.frames.clone())?;
        Ok(families.to_string().into())
    }
}

/// The client.
#[derive(Debug, Clone)]
pub struct Federate {
    /// In force; replaced by a reload.
    stack: Arc<watch::Sender<Arc<Stack>>>,
    metrics: Arc<Metrics>,
    selection: Selection,
    traces: Traces,
}

impl Federate {
    /// A client that does as `settings` say.
    ///
    /// # Errors
    /// [`StartError`], where there are no roots to trust.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn new(settings: Settings) -> Result<Self, StartError> {
        Self::telling(Failures::default(), settings)
    }

    /// As [`new`](Self::new), but tells `observer` why an attempt fails, each time, and not the log.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn observed_by(
        settings: Settings,
        observer: impl Observe<Rejection> + Send + Sync + 'static,
    ) -> Result<Self, StartError> {
        Self::telling(Failures::to(observer), settings)
    }

    fn telling(failures: Failures, settings: Settings) -> Result<Self, StartError> {
        let environment = |error: prometheus::Error| StartError::Environment(error.to_string());
        let (metrics, selection) = (Arc::new(Metrics::new(failures).map_err(environment)?), Selection::default());
        let traces = Traces::new(settings.tracing.as_ref()).map_err(StartError::Environment)?;
        let stack =
            Stack::new(settings, Purpose::Push, &metrics, &selection, &traces).map_err(StartError::Environment)?;
        Ok(Federate { stack: Arc::new(watch::Sender::new(Arc::new(stack))), metrics, selection, traces })
    }

    /// One round, of which nothing is tried again.
    ///
    /// # Errors
    /// Why nothing was pushed.
    pub async fn once(settings: Settings) -> Result<(), Rejection> {
        one_round(settings, Purpose::PushOnce).await.map(drop)
    }

    /// What a round would push, as text 0.0.4.
    ///
    /// # Errors
    /// Why nothing would be.
    pub async fn dry_run(settings: Settings) -> Result<String, Rejection> {
        let selection = one_round(settings, Purpose::Show).await?;
        Ok(String::from_utf8_lossy(&selection.text()?).into_owned())
    }

    /// Pushes round after round until `stop` turns true.
    pub async fn run(&self, stop: watch::Receiver<bool>) {
        rounds::run(self.stack.subscribe(), &self.metrics, stop).await;
        self.traces.end().await;
    }

    /// From now on does as `settings` say; what is at hand is pushed as it was begun. Listener, log and traces stay as
    /// they are.
    ///
    /// # Errors
    /// Where there are no roots to trust; then all stays as it was.
    pub fn replace(&self, settings: Settings) -> Result<(), String> {
        let stack = Stack::new(settings, Purpose::Push, &self.metrics, &self.selection, &self.traces)?;
        self.stack.send_replace(Arc::new(stack));
        Ok(())
    }
}

async fn one_round(settings: Settings, purpose: Purpose) -> Result<Selection, Rejection> {
    let fault = |why: String| Rejection::new(Reason::Internal, why);
    let metrics = Arc::new(Metrics::new(Failures::default()).map_err(|error| fault(error.to_string()))?);
    let selection = Selection::default();
    let traces = Traces::new(settings.tracing.as_ref()).map_err(fault)?;
    let stack = Stack::new(settings, purpose, &metrics, &selection, &traces).map_err(fault)?;
    let pushed = rounds::round(&stack, &metrics).await;
    traces.end().await;
    pushed.map(|()| selection)
}

fn seconds_since_epoch() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs().cast_signed())
}
