//! An application that a Prometheus scrapes, under the test's control.

use hyper::HeaderMap;
use infogw_proto::client::{
    Bucket, BucketSpan, Counter, Exemplar, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType,
};

use super::{
    payload::delimited,
    server::{Answer, Received, Server},
};

/// A scrape target.
pub type Target = Server<Scrape>;

/// One scrape.
#[derive(Debug, Clone)]
pub struct Scrape {
    pub headers: HeaderMap,
}

impl From<Received> for Scrape {
    fn from(received: Received) -> Self {
        Self { headers: received.headers }
    }
}

impl Target {
    /// Exposes what `families` gives at each scrape, as delimited protobuf: the only format that holds native histograms.
    pub async fn exposing(families: impl Fn() -> Vec<MetricFamily> + Send + Sync + 'static) -> Self {
        Self::start(exposition(families)).await
    }

    /// From the next scrape on, exposes what `families` gives.
    pub fn expose(&self, families: impl Fn() -> Vec<MetricFamily> + Send + Sync + 'static) {
        self.set_script(exposition(families));
    }

    /// From the next scrape on, is gone: each is reset. Prometheus then marks every series of the target stale.
    pub fn disappear(&self) {
        self.set_script(|_| Answer::Close);
    }

    /// Waits until it was scraped `n` more times.
    pub async fn wait_for_scrapes(&self, n: usize) {
        self.wait_for(self.received().len() + n).await;
    }
}

fn exposition(families: impl Fn() -> Vec<MetricFamily> + Send + Sync + 'static) -> impl Fn(&Scrape) -> Answer {
    move |_| answer(&families())
}

/// These families, as delimited protobuf.
pub fn answer(families: &[MetricFamily]) -> Answer {
    const PROTOBUF: &str =
        "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited";
    Answer::body(200, PROTOBUF, delimited(families))
}

/// A gauge family of one series.
pub fn gauge(name: &str, labels: &[(&str, &str)], value: f64) -> MetricFamily {
    let gauge = Some(Gauge { value: Some(value) });
    family(name, MetricType::Gauge, Metric { label: pairs(labels), gauge, ..Metric::default() })
}

/// A counter family of one series, with an exemplar of the same value and these labels.
pub fn counter(name: &str, labels: &[(&str, &str)], value: f64, exemplar: &[(&str, &str)]) -> MetricFamily {
    let exemplar = Some(Exemplar { label: pairs(exemplar), value: Some(value), timestamp: None });
    let counter = Some(Counter { value: Some(value), exemplar, ..Counter::default() });
    family(name, MetricType::Counter, Metric { label: pairs(labels), counter, ..Metric::default() })
}

/// A classic histogram: upper bounds and cumulative counts, without `+Inf`, which is `count`.
pub fn histogram(name: &str, buckets: &[(f64, u64)], count: u64, sum: f64) -> MetricFamily {
    let bucket = |&(bound, count): &(f64, u64)| Bucket {
        upper_bound: Some(bound),
        cumulative_count: Some(count),
        ..Bucket::default()
    };
    let histogram = Histogram {
        sample_count: Some(count),
        sample_sum: Some(sum),
        bucket: buckets.iter().map(bucket).collect(),
        ..Histogram::default()
    };
    family(name, MetricType::Histogram, Metric { histogram: Some(histogram), ..Metric::default() })
}

/// A native histogram of schema 3 with `counts` in adjoining positive buckets from index 0, one in the zero bucket, and `sum`.
pub fn native_histogram(name: &str, counts: &[u64], sum: f64) -> MetricFamily {
    // Each bucket is written as its difference to the one before.
    let before = std::iter::once(&0).chain(counts);
    let deltas = counts.iter().zip(before).map(|(&count, &before)| count as i64 - before as i64);
    let histogram = Histogram {
        sample_count: Some(counts.iter().sum::<u64>() + 1),
        sample_sum: Some(sum),
        schema: Some(3),
        zero_threshold: Some(1e-128),
        zero_count: Some(1),
        positive_span: vec![BucketSpan { offset: Some(0), length: Some(counts.len() as u32) }],
        positive_delta: deltas.collect(),
        ..Histogram::default()
    };
    family(name, MetricType::Histogram, Metric { histogram: Some(histogram), ..Metric::default() })
}

fn family(name: &str, kind: MetricType, metric: Metric) -> MetricFamily {
    MetricFamily {
        name: Some(name.to_owned()),
        help: Some(format!("The test's {name}.")),
        r#type: Some(kind as i32),
        metric: vec![metric],
        ..MetricFamily::default()
    }
}

fn pairs(labels: &[(&str, &str)]) -> Vec<LabelPair> {
    let pair = |&(name, value): &(&str, &str)| LabelPair { name: Some(name.to_owned()), value: Some(value.to_owned()) };
    labels.iter().map(pair).collect()
}
