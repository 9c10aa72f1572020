use std::sync::Arc;

use http::request::Parts;

use super::DecodeError;
use crate::{payload::LARGEST_PAYLOAD, rejection::excerpt};

/// How much one body may hold. Whatever is over refuses the body, or the series where the decoder can go on without it.
#[derive(Debug, Clone)]
pub struct DecodeLimits {
    /// Bytes of the body as received.
    pub body: usize,
    /// Bytes of the body after decompression.
    pub decoded: usize,
    /// Series in a body.
    pub series: usize,
    /// Samples in a body, native histograms among them.
    pub samples: usize,
    /// Labels of a series, its name among them.
    pub labels: usize,
    /// Bytes of a label's name.
    pub label_name: usize,
    /// Bytes of a label's value.
    pub label_value: usize,
    /// Labels that no series may carry twice: those that say whose it is. Of others that repeat the first is taken.
    pub unrepeatable: Vec<Box<str>>,
}

impl Default for DecodeLimits {
    /// What a stock sender never meets: 16 MiB decoded, 20,000 series, any number of samples, 128 labels, names and values of any length.
    fn default() -> Self {
        DecodeLimits {
            body: LARGEST_PAYLOAD,
            decoded: 16 << 20,
            series: 20_000,
            samples: usize::MAX,
            labels: 128,
            label_name: usize::MAX,
            label_value: usize::MAX,
            unrepeatable: Vec::new(),
        }
    }
}

/// Where a decoder has its limits from.
#[derive(Debug, Clone)]
pub(super) enum Limits {
    /// The same for all requests.
    Fixed(Arc<DecodeLimits>),
    /// The request's own: an extension that a layer outside left there.
    PerRequest,
}

impl Limits {
    pub(super) fn fixed(limits: DecodeLimits) -> Self {
        Limits::Fixed(Arc::new(limits))
    }

    /// What holds for the request with this head.
    pub(super) fn of(&self, head: &Parts) -> Result<Arc<DecodeLimits>, DecodeError> {
        match self {
            Limits::Fixed(limits) => Ok(Arc::clone(limits)),
            Limits::PerRequest => head.extensions.get().cloned().ok_or(DecodeError::NoLimits),
        }
    }

    /// What holds where there is no request.
    pub(super) fn fixed_only(&self) -> Result<&Arc<DecodeLimits>, DecodeError> {
        match self {
            Limits::Fixed(limits) => Ok(limits),
            Limits::PerRequest => Err(DecodeError::NoLimits),
        }
    }
}

/// Which limit a series' labels break, and by what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Excess<'a> {
    /// So many labels.
    Labels(usize),
    /// This name.
    LabelName(&'a [u8]),
    /// The value of the label of this name, which is so long.
    LabelValue(&'a [u8], usize),
    /// The label of this name.
    NotUtf8(&'a [u8]),
    /// The label of this name.
    Repeated(&'a [u8]),
}

impl DecodeLimits {
    /// Whether a label's name or value is too long.
    #[inline]
    pub(super) fn check_label<'a>(&self, name: &'a [u8], value: &[u8]) -> Result<(), Excess<'a>> {
        if name.len() > self.label_name {
            return Err(Excess::LabelName(name));
        }
        if value.len() > self.label_value {
            return Err(Excess::LabelValue(name, value.len()));
        }
        Ok(())
    }

    /// What to tell a sender whose series is over a limit.
    pub(super) fn explain(&self, excess: Excess<'_>) -> String {
        match excess {
            Excess::Labels(count) => format!("it has {count} labels, at most {} are taken; drop some", self.labels),
            Excess::LabelName(name) => format!(
                "label name `{}` is {} bytes, at most {} are taken; shorten or drop it",
                shown(name),
                name.len(),
                self.label_name
            ),
            Excess::LabelValue(name, len) => format!(
                "the value of label `{}` is {len} bytes, at most {} are taken; shorten or drop it",
                shown(name),
                self.label_value
            ),
            Excess::NotUtf8(name) => format!("label `{}` is not UTF-8; drop it", shown(name)),
            Excess::Repeated(name) => format!("label `{}` stands there twice; send it once", shown(name)),
        }
    }
}

/// The beginning of a name that need not be UTF-8.
fn shown(name: &[u8]) -> String {
    // Longer than an excerpt, so that this is seen to be cut.
    let beginning = name.get(..128).unwrap_or(name);
    excerpt(&String::from_utf8_lossy(beginning)).into_owned()
}
