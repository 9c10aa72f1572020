//! Metric families, encoded for `/upload`: prost reads every series in them, and our own decoder takes them as they were.

use std::convert::Infallible;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full};
use infogw_layers::{
    clock::ManualClock,
    decode::{DecodeLayer, DecodeLimits, MetricFamiliesDecoder},
    encode::{Encode, EncodeLayer, Encoded},
    payload::{Keep, LabelSet, MetricFamilies, SeriesSet},
    translate::Translate,
};
use infogw_proto::{client, prometheus as prom};
use proptest::{collection::vec, prelude::*};
use prost::Message;
use tower::{ServiceBuilder, ServiceExt, service_fn};

use crate::{
    DELIMITED, TEXT,
    bytes::{STALE, bytes_field},
    expansion::{arbitrary_families, decoder, stream},
    families, framed,
    native::{histogram, scraped},
    unframed,
};

proptest! {
    #[test]
    fn prost_reads_every_series(all in scraped_families()) {
        let mut payload = scrape(&all);
        let (body, untouched) = payload.encode().unwrap();
        prop_assert!(!untouched);
        let found = read(&unframed(&body));
        prop_assert_eq!(found.len(), payload.series());

        // One family for each name and kind, in order; ascending in each.
        prop_assert!(found.is_sorted_by(|a, b| (&a.name, a.kind, a.timestamp) <= (&b.name, b.kind, b.timestamp)));
        // No label of the payload is lost, with the name among them.
        let mut shown = crate::shown(&mut payload);
        let mut labels: Vec<_> = found.iter().map(Series::all_labels).collect();
        shown.sort();
        labels.sort();
        prop_assert_eq!(labels, shown);
        // The same labels, values and times, bit for bit: as a write request, which has another test of its own.
        let written = prom::WriteRequest::decode(&payload.translate(None).to_message()[..]).unwrap();
        prop_assert_eq!(found.iter().map(Series::written).collect::<Vec<_>>(), sorted(&written));
    }

    /// The decoder of `/upload`, which refuses what is not in order.
    #[test]
    fn a_gateway_takes_it_as_it_was(all in scraped_families()) {
        let payload = scrape(&all);
        let (body, _) = payload.encode().unwrap();
        let arrived = families(&decoder(), DELIMITED, "snappy", body.clone()).unwrap();
        prop_assert_eq!(arrived.encode().unwrap().0, body, "once more it is the same");
        let written = |payload: MetricFamilies| prom::WriteRequest::decode(&payload.translate(None).to_message()[..]).unwrap();
        let (arrived, sent) = (written(arrived), written(payload));
        let arrived: Vec<_> = arrived.timeseries.iter().map(Message::encode_to_vec).collect();
        prop_assert_eq!(arrived, sorted(&sent));
    }
}

/// Bytes that telemeter-client would send for this, but for the order of fields in a message, which protobuf leaves open.
#[test]
fn a_family_is_a_message_behind_its_length() {
    let at = ManualClock::START.as_millis();
    let text = format!("up{{job=\"b\"}} 2 {at}\nup{{job=\"a\"}} 1 {}\nalerts 3 {at}\n", at - 1);
    let payload = families(&scraping().clock(ManualClock::new()), TEXT, "", text.into()).unwrap();
    let (body, _) = payload.encode().unwrap();
    let label = |value: &[u8]| bytes_field(1, &[bytes_field(1, b"job"), bytes_field(2, value)].concat());
    let time = |at: u128| {
        let mut field = vec![0x30];
        infogw_proto::wire::put_varint(&mut field, at as u64);
        field
    };
    let untyped = |value: f64| bytes_field(5, &[&[0x09][..], &value.to_le_bytes()].concat());
    let metric = |parts: &[Vec<u8>]| bytes_field(4, &parts.concat());
    let alerts = [bytes_field(1, b"alerts"), vec![0x18, 3], metric(&[untyped(3.0), time(at)])].concat();
    let ups = [metric(&[label(b"a"), untyped(1.0), time(at - 1)]), metric(&[label(b"b"), untyped(2.0), time(at)])];
    let ups = [bytes_field(1, b"up"), vec![0x18, 3], ups.concat()].concat();
    let behind_its_length = |family: &[u8]| [&[family.len() as u8], family].concat();
    assert_eq!(unframed(&body), [behind_its_length(&alerts), behind_its_length(&ups)].concat());
}

#[test]
fn a_stale_marker_stays_one() {
    let untyped = client::Untyped { value: Some(f64::from_bits(STALE)) };
    let metric = client::Metric { untyped: Some(untyped), timestamp_ms: Some(now()), ..Default::default() };
    let payload = scrape(&[family(client::MetricType::Untyped, vec![metric])]);
    let found = read(&unframed(&payload.encode().unwrap().0));
    assert_eq!(found.iter().map(|series| series.value).collect::<Vec<_>>(), [Some(STALE)]);
}

/// What made it a native one is left behind where counts are floats: it must not arrive as a classic one without buckets.
#[test]
fn a_native_histogram_arrives_as_one() {
    let histogram = client::Histogram {
        sample_count_float: Some(2.5),
        sample_sum: Some(4.0),
        zero_count: Some(1),
        ..Default::default()
    };
    for kind in [client::MetricType::Histogram, client::MetricType::GaugeHistogram] {
        let metric =
            client::Metric { histogram: Some(histogram.clone()), timestamp_ms: Some(now()), ..Default::default() };
        let payload = scrape(&[family(kind, vec![metric])]);
        assert_eq!(payload.series(), 1);
        let (body, _) = payload.encode().unwrap();
        let arrived = families(&decoder(), DELIMITED, "snappy", body).unwrap();
        let [series] = &prom::WriteRequest::decode(&arrived.translate(None).to_message()[..]).unwrap().timeseries[..]
        else {
            panic!("{kind:?}")
        };
        assert_eq!(series.histograms[0].sum, 4.0);
        assert_eq!(series.histograms[0].reset_hint == 3, kind == client::MetricType::GaugeHistogram);
    }
}

/// Longer than what the compressor takes at once, many times; and no more memory than it is long.
#[test]
fn long_payloads_are_whole() {
    let at = ManualClock::START.as_millis();
    let text: String =
        (0..9000).map(|i| format!("up{{instance=\"node-{i}\",job=\"{}\"}} {i} {at}\n", "j".repeat(i % 90))).collect();
    let payload = families(&decoder(), TEXT, "", text.into()).unwrap();
    let (body, _) = payload.encode().unwrap();
    let found = read(&unframed(&body));
    assert_eq!(found.len(), 9000);
    assert!(found.iter().enumerate().all(|(i, series)| series.value == Some((i as f64).to_bits())));
}

#[tokio::test]
async fn the_request_is_what_upload_takes() {
    type Sent = (HeaderMap, Encoded, Bytes);
    let upload = service_fn(async |request: Request<Full<Bytes>>| -> Result<Response<Option<Sent>>, Infallible> {
        let (head, body) = request.into_parts();
        assert_eq!((head.method.as_str(), head.uri.path()), ("POST", "/upload"));
        let encoded = *head.extensions.get::<Encoded>().unwrap();
        Ok(Response::new(Some((head.headers, encoded, body.collect().await?.to_bytes()))))
    });
    let client = ServiceBuilder::new()
        .layer(DecodeLayer::new(scraping().clock(ManualClock::new())))
        .layer(EncodeLayer::delimited())
        .service(upload);
    let scraped = |body: String| {
        let request = Request::post("/upload").header("content-type", TEXT).header("set-cookie", "theirs");
        request.body(Full::<Bytes>::from(body)).unwrap()
    };
    let answer = client.clone().oneshot(scraped(format!("b 1 {0}\na 1 {0}\n", now()))).await.unwrap();
    let (headers, encoded, body) = answer.into_body().unwrap();
    let mut expected = HeaderMap::new();
    expected.insert("content-type", DELIMITED.parse().unwrap());
    expected.insert("content-encoding", "snappy".parse().unwrap());
    assert_eq!(headers, expected);
    assert_eq!(encoded, Encoded { series: 2, samples: 2, bytes: body.len(), untouched: false });
    let names: Vec<_> = read(&unframed(&body)).into_iter().map(|series| series.name).collect();
    assert_eq!(names, ["a", "b"]);

    // Nothing is pushed of nothing.
    let nothing = client.oneshot(scraped("up 1\n".to_owned())).await.unwrap();
    assert_eq!((nothing.status().as_u16(), nothing.into_body()), (204, None));
}

/// A payload whose series have no name is still one that can be read.
#[test]
fn a_name_can_be_missing() {
    let mut payload = families(&decoder(), TEXT, "", format!("up{{a=\"b\"}} 1 {}\n", now()).into()).unwrap();
    let unnamed = |labels: &mut LabelSet<'_>| -> Result<Keep, Infallible> {
        labels.remove("__name__");
        Ok(Keep::Yes)
    };
    payload.try_edit(unnamed).unwrap();
    let found = read(&unframed(&payload.encode().unwrap().0));
    assert_eq!(found.iter().map(Series::all_labels).collect::<Vec<_>>(), [[("a".to_owned(), "b".to_owned())]]);
}

/// One series of a stream.
#[derive(Debug, Clone)]
struct Series {
    name: String,
    kind: client::MetricType,
    labels: Vec<client::LabelPair>,
    value: Option<u64>,
    histogram: Option<client::Histogram>,
    timestamp: i64,
}

impl Series {
    fn all_labels(&self) -> crate::Labels {
        let name = Some(("__name__".to_owned(), self.name.clone())).filter(|(_, name)| !name.is_empty());
        let own = self.labels.iter().map(|label| (label.name().to_owned(), label.value().to_owned()));
        let mut all: Vec<_> = name.into_iter().chain(own).collect();
        all.sort();
        all
    }

    /// As it is in a write request.
    fn written(&self) -> Vec<u8> {
        let labels = self.all_labels().into_iter().map(|(name, value)| prom::Label { name, value }).collect();
        let value = self.value.map(f64::from_bits);
        let samples = value.map(|value| prom::Sample { value, timestamp: self.timestamp }).into_iter().collect();
        let gauge = self.kind == client::MetricType::GaugeHistogram;
        let histogram = |it| prom::Histogram { timestamp: self.timestamp, ..scraped(it, gauge) };
        let histograms = self.histogram.iter().map(histogram).collect();
        prom::TimeSeries { labels, samples, histograms, ..Default::default() }.encode_to_vec()
    }
}

/// What prost reads in a stream: families of different names or kinds, one series a metric.
fn read(mut stream: &[u8]) -> Vec<Series> {
    let (mut all, mut last) = (Vec::new(), None);
    while !stream.is_empty() {
        let family = client::MetricFamily::decode_length_delimited(&mut stream).unwrap();
        let this = Some((family.name().to_owned(), family.r#type()));
        assert!(!family.metric.is_empty() && last < this, "{this:?} behind {last:?}");
        for metric in &family.metric {
            let client::Metric { label, gauge, counter, summary, untyped, timestamp_ms, histogram } = metric.clone();
            assert_eq!((gauge, counter, summary), (None, None, None));
            assert_eq!(
                (untyped.is_some(), histogram.is_some()),
                match family.r#type() {
                    client::MetricType::Untyped => (true, false),
                    client::MetricType::Histogram | client::MetricType::GaugeHistogram => (false, true),
                    other => panic!("{other:?}"),
                }
            );
            assert!(label.is_sorted_by(|a, b| a.name < b.name));
            all.push(Series {
                name: family.name().to_owned(),
                kind: family.r#type(),
                labels: label,
                value: untyped.map(|untyped| untyped.value.unwrap().to_bits()),
                histogram,
                timestamp: timestamp_ms.unwrap(),
            });
        }
        last = this;
    }
    all
}

/// The series of a request by name, kind and time.
fn sorted(request: &prom::WriteRequest) -> Vec<Vec<u8>> {
    let mut series = request.timeseries.clone();
    series.sort_by_key(|series| {
        let name = series.labels.iter().find(|label| label.name == "__name__").map(|label| label.value.clone());
        let hint = series.histograms.first().map(|histogram| histogram.reset_hint);
        let timestamp = series.histograms.first().map(|histogram| histogram.timestamp);
        (name, hint, timestamp.or(series.samples.first().map(|sample| sample.timestamp)))
    });
    series.iter().map(Message::encode_to_vec).collect()
}

fn scraping() -> MetricFamiliesDecoder {
    MetricFamiliesDecoder::new(DecodeLimits::default()).drop_unusable()
}

pub(crate) fn scrape(all: &[client::MetricFamily]) -> MetricFamilies {
    families(&scraping().clock(ManualClock::new()), DELIMITED, "snappy", framed(&stream(all))).unwrap()
}

fn now() -> i64 {
    ManualClock::START.as_millis() as i64
}

fn family(kind: client::MetricType, metric: Vec<client::Metric>) -> client::MetricFamily {
    client::MetricFamily { name: Some("f".to_owned()), r#type: Some(kind as i32), metric, ..Default::default() }
}

/// Families whose names repeat, as `/federate` repeats them, in any order of time; native histograms among them, some named like numbers.
pub(crate) fn scraped_families() -> impl Strategy<Value = Vec<client::MetricFamily>> {
    let native = |(histogram, gauge): (client::Histogram, bool)| {
        let metric = client::Metric { histogram: Some(histogram), ..Default::default() };
        let kind = if gauge { client::MetricType::GaugeHistogram } else { client::MetricType::Histogram };
        family(kind, vec![metric])
    };
    let natives = vec((histogram(), any::<bool>()).prop_map(native), 0..4);
    (arbitrary_families(), natives, vec((0u8..3, -3i64..4), 40)).prop_map(|(numbers, natives, random)| {
        let mut all = [numbers, natives].concat();
        let mut random = random.iter().cycle();
        for family in &mut all {
            for metric in &mut family.metric {
                metric.timestamp_ms = random.next().map(|(_, at)| now() + at);
            }
            let names = ["f", "e", "f_count"];
            family.name = random.next().map(|(name, _)| names[usize::from(*name)].to_owned());
        }
        all
    })
}
