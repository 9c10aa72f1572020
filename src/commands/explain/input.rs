//! What is given, as the requests that it comes in.

use std::{collections::HashSet, fmt::Write as _, io};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, header, request::Parts};
use infogw_layers::{
    clock::{Clock as _, SystemClock},
    decode::{
        Decoder as _,
        text::{FamilyKind, Label, TextError, TextSink, parse},
    },
    payload::SeriesSet as _,
    policy::Endpoint,
};
use infogw_proto::prometheus as prom;
use prost::Message as _;

use super::{
    super::{Exit, Failure},
    LARGEST_DECODED, series,
};

/// Requests of one sender.
#[derive(Debug)]
pub(super) struct Input {
    pub(super) endpoint: Endpoint,
    pub(super) head: HeaderMap,
    pub(super) bodies: Vec<Bytes>,
    /// It is text: its samples may lack timestamps, and are then as of now.
    pub(super) scraped: bool,
}

impl Input {
    /// The head of each request.
    pub(super) fn head(&self) -> Parts {
        let (mut head, ()) = Request::new(()).into_parts();
        head.headers = self.head.clone();
        head
    }
}

/// What was said of a captured body.
#[derive(Debug, Default)]
pub(super) struct Body {
    pub(super) content_type: Option<String>,
    pub(super) encoding: Option<String>,
}

const TEXT: &str = "text/plain; version=0.0.4";
const DELIMITED: &str = "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited";
/// What a stream of snappy frames begins with.
const FRAMES: &[u8] = b"\xff\x06\x00\x00sNaPpY";

/// A body as the gateway receives it. What nobody says of it is seen from the body.
///
/// # Errors
/// A header that cannot be one; a body that is nothing that either endpoint takes, or becomes too large.
pub(super) fn of_body(name: &str, body: Bytes, endpoint: Option<Endpoint>, said: Body) -> Result<Input, Failure> {
    let too_large =
        || Err(Failure::new(Exit::Data, format_args!("{name}: over {LARGEST_DECODED} bytes once it is decompressed")));
    let Ok(unpacked) = unpacked(&body) else { return too_large() };
    if snap::raw::decompress_len(&body).is_ok_and(|len| len > LARGEST_DECODED) && endpoint != Some(Endpoint::Upload) {
        return too_large();
    }
    let mut head = HeaderMap::new();
    let mut insert = |flag: &str, header: HeaderName, value: &str| match HeaderValue::from_str(value) {
        Ok(value) => {
            head.insert(header, value);
            Ok(())
        }
        Err(_) => Err(Failure::new(Exit::Usage, format_args!("{flag}: `{value}` cannot stand in a header"))),
    };
    let implied = said.content_type.as_deref().and_then(|content_type| {
        match content_type.split(';').next()?.trim().to_ascii_lowercase().as_str() {
            "application/x-protobuf" => Some(Endpoint::Receive),
            "application/vnd.google.protobuf" | "text/plain" => Some(Endpoint::Upload),
            _ => None,
        }
    });
    let endpoint = endpoint.or(implied);
    let encoding = said
        .encoding
        .or_else(|| (unpacked.is_some() && endpoint != Some(Endpoint::Receive)).then(|| "snappy".to_owned()));
    let content_type = match (said.content_type, endpoint) {
        (given @ Some(_), _) => given,
        // Remote write is what it is without.
        (None, Some(Endpoint::Receive)) => None,
        (None, _) => seen(&body, unpacked.as_deref(), endpoint),
    };
    let endpoint = endpoint.or(match content_type.as_deref() {
        Some(TEXT | DELIMITED) => Some(Endpoint::Upload),
        None if series::is_write_request(&body) => Some(Endpoint::Receive),
        _ => None,
    });
    let Some(endpoint) = endpoint else {
        let why = "is neither a snappy block of remote write nor an upload's metric families; give --endpoint, and --content-type and \
                   --content-encoding as the request had them";
        return Err(Failure::new(Exit::Data, format_args!("{name}: {why}")));
    };
    if let Some(content_type) = content_type {
        insert("--content-type", header::CONTENT_TYPE, &content_type)?;
    }
    if let Some(encoding) = encoding {
        insert("--content-encoding", header::CONTENT_ENCODING, &encoding)?;
    }
    Ok(Input { endpoint, head, bodies: vec![body], scraped: false })
}

/// What is in the frames, if there are any.
fn unpacked(body: &[u8]) -> Result<Option<Vec<u8>>, ()> {
    if !body.starts_with(FRAMES) {
        return Ok(None);
    }
    let mut unpacked = Vec::new();
    let mut frames = io::Read::take(snap::read::FrameDecoder::new(body), LARGEST_DECODED as u64 + 1);
    // What is broken is the gateway's to refuse.
    let _ = io::Read::read_to_end(&mut frames, &mut unpacked);
    if unpacked.len() > LARGEST_DECODED { Err(()) } else { Ok(Some(unpacked)) }
}

/// The content type of an upload, by its body.
fn seen(body: &[u8], unpacked: Option<&[u8]>, endpoint: Option<Endpoint>) -> Option<String> {
    if endpoint.is_none() && unpacked.is_none() && series::is_write_request(body) {
        return None;
    }
    let families = unpacked.unwrap_or(body);
    let is = |content_type: &'static str| {
        let (mut head, ()) = Request::new(()).into_parts();
        head.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        let decoder = series::lenient_families();
        let decoded = decoder.negotiate(&head).and_then(|format| decoder.decode(format, families.to_vec().into()));
        decoded.is_ok_and(|families| families.series() > 0)
    };
    [DELIMITED, TEXT].into_iter().find(|content_type| is(content_type)).map(ToOwned::to_owned)
}

/// A text as the remote write of a Prometheus that scraped it.
///
/// # Errors
/// A text that is none.
pub(super) fn received(
    name: &str,
    text: &[u8],
    external: &[(String, String)],
    samples_per_send: u32,
) -> Result<Input, Failure> {
    let now = SystemClock.now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_millis() as i64;
    let mut sender =
        RemoteWrite { external, most: samples_per_send as usize, now, series: Vec::new(), bodies: Vec::new() };
    read(name, text, &mut sender)?;
    sender.send().map_err(|error| Failure::new(Exit::Data, format_args!("{name}: {error}")))?;
    Ok(Input { endpoint: Endpoint::Receive, head: HeaderMap::new(), bodies: sender.bodies, scraped: true })
}

/// A text as an upload.
///
/// # Errors
/// A text that is none.
pub(super) fn uploaded(name: &str, text: Vec<u8>, external: &[(String, String)]) -> Result<Input, Failure> {
    let mut labelled = Labelled { external, text: String::new(), typed: HashSet::new() };
    read(name, &text, &mut labelled)?;
    // What needs no labels goes as it is.
    let body = if external.is_empty() { text } else { labelled.text.into_bytes() };
    let head = HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static(TEXT))]);
    Ok(Input { endpoint: Endpoint::Upload, head, bodies: vec![body.into()], scraped: true })
}

fn read<S: TextSink<Error = snap::Error>>(name: &str, text: &[u8], sink: &mut S) -> Result<(), Failure> {
    parse(text, usize::MAX, sink).map_err(|error: TextError<snap::Error>| {
        Failure::new(Exit::Data, format_args!("{name}: this is no text of metrics: {error}"))
    })
}

/// Labels of a sample, with those of `external` that it lacks.
fn with<'l>(labels: &'l [Label<'l>], external: &'l [(String, String)]) -> impl Iterator<Item = (&'l str, &'l str)> {
    let absent = |(name, _): &&(String, String)| {
        !labels.iter().any(|label| label.name == name.as_str() && !label.value.is_empty())
    };
    let own = labels.iter().filter(|label| !label.value.is_empty()).map(|label| (label.name, label.value));
    own.chain(external.iter().filter(absent).map(|(name, value)| (name.as_str(), value.as_str())))
}

/// Packs series as a Prometheus does.
struct RemoteWrite<'e> {
    external: &'e [(String, String)],
    /// Samples in a request.
    most: usize,
    now: i64,
    series: Vec<prom::TimeSeries>,
    bodies: Vec<Bytes>,
}

impl RemoteWrite<'_> {
    /// What there is. Nothing at all is a request, too.
    fn send(&mut self) -> Result<(), snap::Error> {
        if self.series.is_empty() && !self.bodies.is_empty() {
            return Ok(());
        }
        let request = prom::WriteRequest { timeseries: std::mem::take(&mut self.series), metadata: Vec::new() };
        self.bodies.push(snap::raw::Encoder::new().compress_vec(&request.encode_to_vec())?.into());
        Ok(())
    }
}

impl TextSink for RemoteWrite<'_> {
    type Error = snap::Error;

    fn family(&mut self, _: &str, _: FamilyKind) -> Result<(), snap::Error> {
        Ok(())
    }

    fn sample(
        &mut self,
        name: &str,
        labels: &[Label<'_>],
        value: f64,
        timestamp: Option<i64>,
    ) -> Result<(), snap::Error> {
        let labels = std::iter::once(("__name__", name)).chain(with(labels, self.external));
        let mut labels: Vec<_> =
            labels.map(|(name, value)| prom::Label { name: name.into(), value: value.into() }).collect();
        labels.sort_by(|one, other| one.name.cmp(&other.name));
        let samples = vec![prom::Sample { value, timestamp: timestamp.unwrap_or(self.now) }];
        self.series.push(prom::TimeSeries { labels, samples, ..Default::default() });
        if self.series.len() < self.most { Ok(()) } else { self.send() }
    }
}

/// Writes the text again, with the labels of the sender on it.
struct Labelled<'e> {
    external: &'e [(String, String)],
    text: String,
    typed: HashSet<String>,
}

impl TextSink for Labelled<'_> {
    type Error = snap::Error;

    fn family(&mut self, name: &str, kind: FamilyKind) -> Result<(), snap::Error> {
        let kind = match kind {
            FamilyKind::Counter => "counter",
            FamilyKind::Gauge => "gauge",
            FamilyKind::Histogram => "histogram",
            FamilyKind::Summary => "summary",
            FamilyKind::Untyped => return Ok(()),
        };
        if !self.external.is_empty() && self.typed.insert(name.to_owned()) {
            let _ = writeln!(self.text, "# TYPE {name} {kind}");
        }
        Ok(())
    }

    fn sample(
        &mut self,
        name: &str,
        labels: &[Label<'_>],
        value: f64,
        timestamp: Option<i64>,
    ) -> Result<(), snap::Error> {
        if self.external.is_empty() {
            return Ok(());
        }
        self.text.push_str(name);
        for (index, (name, value)) in with(labels, self.external).enumerate() {
            let value = value.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n");
            let _ = write!(self.text, "{}{name}=\"{value}\"", if index == 0 { '{' } else { ',' });
        }
        // Some are external, so there are some.
        self.text.push('}');
        let _ = match value {
            f64::INFINITY => write!(self.text, " +Inf"),
            f64::NEG_INFINITY => write!(self.text, " -Inf"),
            value => write!(self.text, " {value}"),
        };
        if let Some(timestamp) = timestamp {
            let _ = write!(self.text, " {timestamp}");
        }
        self.text.push('\n');
        Ok(())
    }
}
