//! Tower layers for gateways that take pushed metrics.
//!
//! Each layer is generic, has a feature of its own, and can be used alone. In the order in which a request meets them:
//!
//! | layer | feature | what it does to the request |
//! | --- | --- | --- |
//! | [`TraceLayer`](trace) | `trace` | makes a span of it; around an HTTP client, too |
//! | [`ObserveLayer`](observe) | `observe` | tells metrics and logs what passed |
//! | [`DrainLayer`](drain) | `drain` | reads a bounded rest of what was refused, so that the answer arrives |
//! | [`RespondLayer`](respond) | `respond` | writes every refusal, once, in one shape |
//! | [`AuthorizeLayer`](authorize) | `authorize` | says who it is: extensions += `Authorized<I>` |
//! | [`PolicyLayer`](policy) | `policy` | what holds for this one, exceptions and all |
//! | [`RateLimitLayer`](rate_limit) | `rate-limit` | charges it, before its body is read |
//! | [`DecodeLayer`](decode) | `decode` | body `B` → payload, bounded before it allocates |
//! | [`EditLayer`](edit) | `edit`, `anonymize` | labels set and anonymized, metrics renamed, series dropped |
//! | [`EnforceLabelsLayer`](enforce) | `enforce` | whose series, which series, which labels |
//! | [`TranslateLayer`](translate) | `translate` | `MetricFamilies` → `WriteRequest` |
//! | [`EncodeLayer`](encode) | `encode` | `WriteRequest` → bytes and remote-write headers; or `MetricFamilies` → `/upload`'s |
//!
//! Around an authorizer, or the HTTP client that it asks with:
//!
//! | layer | feature | what it does |
//! | --- | --- | --- |
//! | [`CacheLayer`](authorize::cache) | `cache` | keeps what an authorizer said, refreshes it ahead, serves it stale |
//! | [`SingleFlightLayer`](authorize::single_flight) | `single-flight` | concurrent requests of one credential make one call |
//! | [`RetryOutages`](retry), for tower's `RetryLayer` | `retry` | tries outages again, within a budget |
//! | [`CircuitLayer`](circuit) | `circuit` | leaves a neighbour alone that does not answer |
//! | [`BearerLayer`](client_credentials) | `client-credentials` | sends our own token along |
//!
//! Around what a client of such a gateway pushes:
//!
//! | layer | feature | what it does |
//! | --- | --- | --- |
//! | [`GrantedLabelsLayer`](exchange) | `exchange` | sets the labels that came with the gateway's token |
//! | [`RetryUntilTaken`](retry), for tower's `RetryLayer` | `retry` | tries a push until it is taken, refused or too old |
//!
//! What requests buffer, all together, has a [`budget`]. What replicas share is kept in a [`store`]: Redis (`redis`) or memcached (`memcached`).
//!
//! A payload is decoded once and encoded at most once; see [`payload`]. Every layer refuses with one error, [`rejection`].
//! Types state the order where it matters: to enforce labels on a body that was not decoded does not compile.

#![cfg_attr(docsrs, feature(doc_cfg))]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

#[cfg(feature = "authorize")]
pub mod authorize;
#[cfg(feature = "budget")]
pub mod budget;
#[cfg(feature = "circuit")]
pub mod circuit;
#[cfg(any(feature = "client-credentials", feature = "tollbooth"))]
pub mod client;
#[cfg(feature = "client-credentials")]
pub mod client_credentials;
pub mod clock;
#[cfg(feature = "test-util")]
pub mod conformance;
#[cfg(feature = "decode")]
pub mod decode;
pub mod describe;
#[cfg(feature = "drain")]
pub mod drain;
#[cfg(feature = "edit")]
pub mod edit;
#[cfg(feature = "encode")]
pub mod encode;
#[cfg(feature = "enforce")]
pub mod enforce;
#[cfg(feature = "exchange")]
pub mod exchange;
#[cfg(any(feature = "decode", feature = "encode"))]
mod float;
#[cfg(any(feature = "budget", feature = "enforce"))]
mod future;
pub mod observe;
// `decode` makes payloads and `translate` moves them: without these, parts lie idle.
#[cfg_attr(not(all(feature = "decode", feature = "translate")), allow(dead_code))]
pub mod payload;
#[cfg(feature = "policy")]
pub mod policy;
#[cfg(feature = "rate-limit")]
pub mod rate_limit;
pub mod rejection;
#[cfg(feature = "respond")]
pub mod respond;
#[cfg(feature = "retry")]
pub mod retry;
#[cfg(feature = "store")]
pub mod store;
#[cfg(feature = "trace")]
pub mod trace;
#[cfg(feature = "translate")]
pub mod translate;
