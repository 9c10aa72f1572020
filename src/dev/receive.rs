//! A receive endpoint: takes remote write 1.0 and shows as text what it got.

use std::{fmt::Write as _, sync::Arc};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use infogw_proto::{
    prometheus::{Histogram, TimeSeries, histogram},
    wire::{Cursor, WireType},
};
use prost::Message;

use super::{
    serve::{bounded, reply},
    store::{Arrived, Latest, Store},
};

/// Where it takes remote write.
pub(super) const PATH: &str = "/api/v1/receive";

/// Most bytes of a request on the wire, decoded, and of one series of it; most series.
const LONGEST: usize = 4 << 20;
const LONGEST_DECODED: usize = 16 << 20;
const LONGEST_SERIES: usize = 256 << 10;
const MOST_SERIES: usize = 20_000;
/// The most that a byte of a snappy block can become.
const MOST_EXPANSION: usize = 22;

const TEXT: &str = "text/plain; charset=utf-8";

/// A refusal: its status and its line.
type Refused = (StatusCode, &'static str);

/// Answers one request.
pub(super) async fn answer(store: Arc<Store>, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    let path = head.uri.path();
    let (allowed, allow) = match path {
        PATH => (head.method == Method::POST, "POST"),
        _ => (matches!(head.method, Method::GET | Method::HEAD), "GET, HEAD"),
    };
    if !allowed {
        let mut response = reply(StatusCode::METHOD_NOT_ALLOWED, TEXT, format!("only {allow} is taken here\n"));
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allow));
        return response;
    }
    if path == PATH {
        let body = bounded(body, LONGEST).await.ok_or((StatusCode::PAYLOAD_TOO_LARGE, "the body is too large"));
        return match body.and_then(|body| take(&store, &head.headers, &body)) {
            Ok(()) => reply(StatusCode::NO_CONTENT, TEXT, ""),
            Err((status, line)) => reply(status, TEXT, format!("{line}\n")),
        };
    }
    let page = match path.strip_prefix("/clusters/") {
        Some(id) => store.cluster(id),
        None if path == "/" => Some(store.overview()),
        None => None,
    };
    match page {
        Some(page) => reply(StatusCode::OK, TEXT, page),
        None => reply(StatusCode::NOT_FOUND, TEXT, "nothing was received for this; `GET /` shows what was\n"),
    }
}

/// All of the request, or nothing of it.
fn take(store: &Store, headers: &HeaderMap, body: &[u8]) -> Result<(), Refused> {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if header("content-type") != "application/x-protobuf" || header("content-encoding") != "snappy" {
        return Err((StatusCode::UNSUPPORTED_MEDIA_TYPE, "send remote write 1.0 in a snappy block"));
    }
    let tenant: String = header("thanos-tenant").chars().take(64).collect();
    let series = decode(&unpack(body)?)?;
    store.keep(&tenant, body.len() as u64, series);
    Ok(())
}

fn unpack(body: &[u8]) -> Result<Vec<u8>, Refused> {
    let malformed = (StatusCode::BAD_REQUEST, "the body is not a snappy block");
    let declared = snap::raw::decompress_len(body).map_err(|_| malformed)?;
    if declared > body.len().saturating_mul(MOST_EXPANSION) {
        return Err(malformed);
    }
    if declared > LONGEST_DECODED {
        return Err((StatusCode::PAYLOAD_TOO_LARGE, "the decoded body is too large"));
    }
    snap::raw::Decoder::new().decompress_vec(body).map_err(|_| malformed)
}

/// Series by series: a whole request as prost's types can be a hundred times its bytes.
fn decode(request: &[u8]) -> Result<Vec<Arrived>, Refused> {
    let malformed = (StatusCode::BAD_REQUEST, "the body is not a write request");
    let mut arrived = Vec::new();
    let mut cursor = Cursor::new(request);
    while let Some(field) = cursor.field().map_err(|_| malformed)? {
        if field.number != 1 || field.wire != WireType::Len {
            cursor.skip(field.wire).map_err(|_| malformed)?;
            continue;
        }
        let message = cursor.bytes().map_err(|_| malformed)?;
        if arrived.len() >= MOST_SERIES || message.len() > LONGEST_SERIES {
            return Err((StatusCode::PAYLOAD_TOO_LARGE, "there are too many series, or one is too large"));
        }
        let series = TimeSeries::decode(message).map_err(|_| malformed)?;
        arrived.push(Arrived {
            cluster: series
                .labels
                .iter()
                .find(|label| label.name == "_id")
                .map_or_else(String::new, |id| id.value.clone()),
            series: name(&series),
            latest: latest(&series),
            samples: (series.samples.len() + series.histograms.len()) as u64,
            bytes: message.len() as u64,
        });
    }
    Ok(arrived)
}

/// As PromQL has it, escaped.
fn name(series: &TimeSeries) -> String {
    let mut name = String::new();
    let mut labels = Vec::with_capacity(series.labels.len());
    for label in &series.labels {
        if label.name == "__name__" {
            // Writing to a String cannot fail.
            let _ = write!(name, "{}", label.value.escape_debug());
        } else {
            labels.push(format!("{}={:?}", label.name.escape_debug(), label.value));
        }
    }
    let _ = write!(name, "{{{}}}", labels.join(","));
    name
}

/// Samples come oldest first, and a series has either kind.
fn latest(series: &TimeSeries) -> Option<Latest> {
    let number = series.samples.last().map(|sample| Latest::Number(sample.value));
    let count = |histogram: &Histogram| match histogram.count {
        Some(histogram::Count::CountInt(count)) => count as f64,
        Some(histogram::Count::CountFloat(count)) => count,
        None => 0.0,
    };
    let histogram = |histogram: &Histogram| Latest::Histogram { count: count(histogram), sum: histogram.sum };
    number.or_else(|| series.histograms.last().map(histogram))
}

#[cfg(test)]
mod tests {
    use infogw_proto::prometheus::{Label, Sample, WriteRequest};

    use super::*;

    fn packed(bytes: &[u8]) -> Vec<u8> {
        snap::raw::Encoder::new().compress_vec(bytes).unwrap()
    }

    fn headers() -> HeaderMap {
        let headers = [("content-type", "application/x-protobuf"), ("content-encoding", "snappy")];
        let headers = headers.map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
        headers.into_iter().collect()
    }

    #[test]
    fn what_is_taken_is_shown() {
        let label = |name: &str, value: &str| Label { name: name.to_owned(), value: value.to_owned() };
        let floats = TimeSeries {
            labels: vec![label("__name__", "up"), label("_id", "c1"), label("job", "a\u{1b}\"b")],
            samples: vec![Sample { value: 1.0, timestamp: 1 }, Sample { value: 0.25, timestamp: 2 }],
            ..TimeSeries::default()
        };
        let native = TimeSeries {
            labels: vec![label("__name__", "size"), label("_id", "c1")],
            histograms: vec![Histogram {
                count: Some(histogram::Count::CountInt(7)),
                sum: 3.5,
                ..Histogram::default()
            }],
            ..TimeSeries::default()
        };
        let request = WriteRequest { timeseries: vec![floats, native], ..WriteRequest::default() };
        let store = Store::default();
        take(&store, &headers(), &packed(&request.encode_to_vec())).unwrap();
        let page = store.cluster("c1").unwrap();
        assert!(page.contains("0.25") && page.contains(r#"up{_id="c1",job="a\u{1b}\"b"}"#), "{page}");
        assert!(page.contains("count 7 sum 3.5") && page.contains("  3 samples"), "{page}");
    }

    #[test]
    fn memory_is_spent_after_limits_are_checked() {
        let store = Store::default();
        let status = |body: &[u8]| take(&store, &headers(), body).unwrap_err().0.as_u16();
        let claims = |bytes: u32| {
            let mut body = Vec::new();
            infogw_proto::wire::put_varint(&mut body, bytes.into());
            body.resize(100_000, 0);
            body
        };
        assert_eq!(status(&claims(u32::MAX)), 400);
        assert_eq!(status(&packed(&vec![0; LONGEST_DECODED + 1])), 413);
        // Empty series are two bytes each, empty labels in one series likewise.
        assert_eq!(status(&packed(&[0x0a, 0].repeat(MOST_SERIES + 1))), 413);
        let long = TimeSeries {
            labels: vec![infogw_proto::prometheus::Label { name: "a".to_owned(), value: "x".repeat(LONGEST_SERIES) }],
            ..TimeSeries::default()
        };
        let request = WriteRequest { timeseries: vec![long], ..WriteRequest::default() };
        assert_eq!(status(&packed(&request.encode_to_vec())), 413);
        assert_eq!(status(&packed(b"\x0a\x7f")), 400);
        assert_eq!(take(&store, &HeaderMap::new(), b"").unwrap_err().0, 415);
        assert!(store.overview().starts_with("0 clusters; 0 requests"));
    }
}
