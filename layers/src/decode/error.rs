//! Why a body is refused.

use std::{fmt, time::Duration};

use infogw_proto::wire::WireError;

use super::NAME;
use crate::rejection::{Reason, Rejection, excerpt};

/// Why a body is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// 415: the content type is none of those taken.
    #[error("content type `{}` is not taken here; send {takes}", excerpt(found))]
    MediaType {
        /// What the request says.
        found: String,
        /// What it may say.
        takes: &'static str,
    },
    /// 415: the content encoding is none of those taken.
    #[error("content encoding `{}` is not taken here; send {takes}", excerpt(found))]
    Encoding {
        /// What the request says.
        found: String,
        /// What it may say.
        takes: &'static str,
    },
    /// 413: too many bytes.
    #[error("the {what} is {}; send less at a time", Over { found: *size, limit: *limit, unit: "bytes" })]
    TooLarge {
        /// "body", "decoded body" or "body with its histograms expanded".
        what: &'static str,
        /// Its size in bytes, unless it was not read to its end.
        size: Option<u64>,
        /// The limit in bytes.
        limit: usize,
    },
    /// 413: too many series.
    #[error("the request has {}; send fewer at a time", Over { found: *count, limit: *limit, unit: "series" })]
    TooManySeries {
        /// How many, unless what follows cannot be read.
        count: Option<u64>,
        /// The limit.
        limit: usize,
    },
    /// 413: too many samples.
    #[error("the request has {}; send fewer at a time", Over { found: *count, limit: *limit, unit: "samples" })]
    TooManySamples {
        /// How many, unless what follows cannot be read.
        count: Option<u64>,
        /// The limit.
        limit: usize,
    },
    /// 500: nobody said what may be decoded of this request.
    #[error("nobody set the limits of this request")]
    NoLimits,
    /// 400: the body broke off.
    #[error("the body broke off; send it whole")]
    Body,
    /// 503: the body did not arrive in time.
    #[error("the body did not arrive within {} s", .0.as_secs())]
    Timeout(Duration),
    /// 400: not what the head says it is.
    #[error("{0}")]
    Malformed(String),
    /// 400: series that break a limit.
    #[error("{0}")]
    InvalidSeries(String),
    /// 400: series without a usable timestamp.
    #[error("{0}")]
    Timestamp(String),
}

/// A value and the limit that it is over.
struct Over {
    found: Option<u64>,
    limit: usize,
    unit: &'static str,
}

impl fmt::Display for Over {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Over { found, limit, unit } = self;
        match found {
            Some(found) => write!(f, "{found} {unit}, at most {limit} are taken"),
            None => write!(f, "more than {limit} {unit}, the most that is taken"),
        }
    }
}

impl From<DecodeError> for Rejection {
    fn from(error: DecodeError) -> Self {
        let reason = match error {
            DecodeError::MediaType { .. } => Reason::MediaType,
            DecodeError::Encoding { .. } => Reason::Encoding,
            DecodeError::TooLarge { .. } => Reason::TooLarge,
            DecodeError::TooManySeries { .. } => Reason::TooManySeries,
            DecodeError::TooManySamples { .. } => Reason::TooManySamples,
            DecodeError::NoLimits => Reason::Internal,
            DecodeError::Body => Reason::Body,
            DecodeError::Timeout(_) => Reason::BodyTimeout,
            DecodeError::Malformed(_) => Reason::Malformed,
            DecodeError::InvalidSeries(_) => Reason::InvalidSeries,
            DecodeError::Timestamp(_) => Reason::Timestamp,
        };
        Rejection::new(reason, error.to_string()).by(NAME)
    }
}

impl From<WireError> for DecodeError {
    fn from(error: WireError) -> Self {
        DecodeError::Malformed(format!("the body is not the protobuf message it should be: {error}"))
    }
}
