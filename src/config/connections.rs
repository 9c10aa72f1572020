//! What connections and the requests on them may hold, and for how long.

use std::{num::NonZeroUsize, ops::RangeInclusive, time::Duration};

use clap::Args;

use super::{ConfigError, duration, given, number, wrong};

/// Flags of connections.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Connections")]
pub struct ConnectionFlags {
    /// Most connections to the public listener; more wait until one ends [default: 16384].
    #[arg(long, value_name = "CONNECTIONS")]
    pub limit_connections: Option<String>,
    /// Most of them from one address, or one IPv6 network of 64 bits; more are closed at once; 0 is unlimited. Two can fill all places
    /// with the default, which is for balancers in front; without those a tenth of it is enough [default: 8192].
    #[arg(long, value_name = "CONNECTIONS")]
    pub limit_connections_per_peer: Option<String>,
    /// Most bytes that all requests together may buffer: heads, bodies as received and as written anew, and 8 KiB for each; past it they
    /// are refused with 503, so give it more than the largest body; 0 is unlimited [default: 536870912].
    #[arg(long, value_name = "BYTES")]
    pub limit_buffered_bytes: Option<String>,
    /// Most bytes of a request's head; of HTTP/1.1 up to as many again that arrive together with the last of them [default: 65536].
    #[arg(long, value_name = "BYTES")]
    pub limit_header_bytes: Option<String>,
    /// Most headers of a request [default: 100].
    #[arg(long, value_name = "HEADERS")]
    pub limit_headers: Option<String>,
    /// Most requests at once on one connection of HTTP/2 [default: 256].
    #[arg(long, value_name = "STREAMS")]
    pub limit_streams: Option<String>,
    /// Most streams of HTTP/2 that a client has reset before they were looked at; past it the connection is closed [default: 20].
    #[arg(long, value_name = "STREAMS")]
    pub limit_stream_resets: Option<String>,
    /// How long a new connection may be without a request, a TLS handshake included; and, to twice as long, a later head of HTTP/1.1, or
    /// answers that the client does not take [default: 30s].
    #[arg(long, value_name = "DURATION")]
    pub header_timeout: Option<String>,
    /// How long a request's body may take; past it the request is refused with 503 [default: 30s].
    #[arg(long, value_name = "DURATION")]
    pub body_timeout: Option<String>,
    /// How long a connection may be idle; only as long as --header-timeout while all places are taken [default: 6m].
    #[arg(long, value_name = "DURATION")]
    pub idle_timeout: Option<String>,
    /// How long requests in flight have to end on SIGTERM, once the two seconds are over in which new ones are refused; past it they are
    /// answered with 503. The whole takes up to six seconds more, and Kubernetes gives 30 if it is not told otherwise [default: 22s].
    #[arg(long, value_name = "DURATION")]
    pub shutdown_grace: Option<String>,
}

/// What they mean. The internal listener has [its own](Connections::internal).
#[derive(Debug, Clone)]
pub struct Connections {
    /// Connections at once.
    pub most: NonZeroUsize,
    /// Of one peer.
    pub most_per_peer: Option<NonZeroUsize>,
    /// Bytes of requests at once.
    pub buffered: Option<NonZeroUsize>,
    /// Bytes of a request's head.
    pub header_bytes: u32,
    /// Headers of a request.
    pub headers: usize,
    /// Requests at once on one connection of HTTP/2.
    pub streams: u32,
    /// Streams that were reset before they were accepted.
    pub stream_resets: usize,
    /// From a connection to its first request; then of a head, and of answers that are not taken.
    pub header_timeout: Duration,
    /// From a request's head to the end of its body.
    pub body_timeout: Duration,
    /// From one request to the next. A stock sender that has nothing else to say sends metadata every minute, and telemeter's client
    /// comes back after four and a half.
    pub idle_timeout: Duration,
    /// From the end of the farewell to that of requests in flight. With the rest the default is less than the 30 seconds that
    /// Kubernetes gives.
    pub shutdown_grace: Duration,
}

impl Default for Connections {
    fn default() -> Self {
        Connections {
            most: const { NonZeroUsize::new(16_384).unwrap() },
            most_per_peer: NonZeroUsize::new(8192),
            buffered: NonZeroUsize::new(512 << 20),
            header_bytes: 64 << 10,
            headers: 100,
            streams: 256,
            stream_resets: 20,
            header_timeout: Duration::from_secs(30),
            body_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(6 * 60),
            shutdown_grace: Duration::from_secs(22),
        }
    }
}

impl Connections {
    /// Of the internal listener: few have to do with it.
    pub fn internal() -> Self {
        Connections {
            most: const { NonZeroUsize::new(256).unwrap() },
            most_per_peer: NonZeroUsize::new(64),
            streams: 16,
            idle_timeout: Duration::from_secs(2 * 60),
            ..Connections::default()
        }
    }
}

/// The longest of the times.
const LONGEST: Duration = Duration::from_secs(86_400);
/// Less than this HTTP/1.1 is not read with.
const LEAST_HEADER_BYTES: usize = 8192;

impl ConnectionFlags {
    pub(super) fn read(self) -> Result<Connections, ConfigError> {
        let default = Connections::default();
        let least = LEAST_HEADER_BYTES;
        let (header, headers) = (default.header_bytes as usize, default.headers);
        let (streams, resets) = (default.streams as usize, default.stream_resets);
        let or_none = |limit: Option<NonZeroUsize>| limit.map_or(0, NonZeroUsize::get);
        let most = between("--limit-connections", self.limit_connections, default.most.get(), 1..=1 << 20)?;
        let most_per_peer =
            number("--limit-connections-per-peer", self.limit_connections_per_peer, or_none(default.most_per_peer))?;
        let buffered = number("--limit-buffered-bytes", self.limit_buffered_bytes, or_none(default.buffered))?;
        let header_bytes = between("--limit-header-bytes", self.limit_header_bytes, header, least..=16 << 20)?;
        Ok(Connections {
            most: NonZeroUsize::new(most).unwrap_or(NonZeroUsize::MIN),
            most_per_peer: NonZeroUsize::new(most_per_peer),
            buffered: NonZeroUsize::new(buffered),
            header_bytes: header_bytes as u32,
            headers: between("--limit-headers", self.limit_headers, headers, 1..=10_000)?,
            streams: between("--limit-streams", self.limit_streams, streams, 1..=1 << 20)? as u32,
            stream_resets: between("--limit-stream-resets", self.limit_stream_resets, resets, 1..=1 << 20)?,
            header_timeout: time("--header-timeout", self.header_timeout, default.header_timeout)?,
            body_timeout: time("--body-timeout", self.body_timeout, default.body_timeout)?,
            idle_timeout: time("--idle-timeout", self.idle_timeout, default.idle_timeout)?,
            shutdown_grace: time("--shutdown-grace", self.shutdown_grace, default.shutdown_grace)?,
        })
    }
}

fn between(
    flag: &str,
    value: Option<String>,
    default: usize,
    range: RangeInclusive<usize>,
) -> Result<usize, ConfigError> {
    let value = number(flag, value, default)?;
    if range.contains(&value) {
        return Ok(value);
    }
    wrong!("{flag}: {value} is not from {} to {}", range.start(), range.end())
}

fn time(flag: &str, value: Option<String>, default: Duration) -> Result<Duration, ConfigError> {
    let Some(value) = given(value) else { return Ok(default) };
    let time = duration::parse(&value).map_err(|error| ConfigError(format!("{flag}: {error}")))?;
    if time.is_zero() || time > LONGEST {
        return wrong!("{flag}: `{value}` is not more than 0 and at most 24h");
    }
    Ok(time)
}
