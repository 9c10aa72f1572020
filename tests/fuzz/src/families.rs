//! Metric families, as prost reads them and a scrape stores them: the series that must come of them.

use infogw_layers::decode::DecodeLimits;
use prost::Message;

use crate::{go, oracle};

/// `io.prometheus.client.MetricFamily`, but for what the gateway steps over: help, exemplars, times of creation.
#[derive(Clone, PartialEq, Message)]
pub struct MetricFamily {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(int32, tag = "3")]
    pub kind: i32,
    #[prost(message, repeated, tag = "4")]
    pub metric: Vec<Metric>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Metric {
    #[prost(message, repeated, tag = "1")]
    pub label: Vec<LabelPair>,
    #[prost(message, optional, tag = "2")]
    pub gauge: Option<Number>,
    #[prost(message, optional, tag = "3")]
    pub counter: Option<Number>,
    #[prost(bytes = "vec", optional, tag = "4")]
    pub summary: Option<Vec<u8>>,
    #[prost(message, optional, tag = "5")]
    pub untyped: Option<Number>,
    #[prost(int64, optional, tag = "6")]
    pub timestamp_ms: Option<i64>,
    /// What is read of it depends on what it holds.
    #[prost(bytes = "vec", optional, tag = "7")]
    pub histogram: Option<Vec<u8>>,
}

/// As bytes: of a name or value that repeats only the last must be UTF-8, as nothing else goes on.
#[derive(Clone, PartialEq, Message)]
pub struct LabelPair {
    #[prost(bytes = "vec", tag = "1")]
    pub name: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub value: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Number {
    #[prost(double, tag = "1")]
    pub value: f64,
}

#[derive(Clone, PartialEq, Message)]
pub struct Summary {
    #[prost(uint64, tag = "1")]
    pub count: u64,
    #[prost(double, tag = "2")]
    pub sum: f64,
    #[prost(message, repeated, tag = "3")]
    pub quantile: Vec<Quantile>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Quantile {
    #[prost(double, tag = "1")]
    pub quantile: f64,
    #[prost(double, tag = "2")]
    pub value: f64,
}

#[derive(Clone, PartialEq, Message)]
pub struct Classic {
    #[prost(uint64, tag = "1")]
    pub count: u64,
    #[prost(double, tag = "2")]
    pub sum: f64,
    #[prost(message, repeated, tag = "3")]
    pub bucket: Vec<Bucket>,
    #[prost(double, tag = "4")]
    pub count_float: f64,
}

#[derive(Clone, PartialEq, Message)]
pub struct Bucket {
    #[prost(uint64, tag = "1")]
    pub count: u64,
    #[prost(double, tag = "2")]
    pub upper_bound: f64,
    #[prost(double, tag = "4")]
    pub count_float: f64,
}

/// What makes a histogram a native one. If nothing does, whatever else of one it holds is stepped over.
#[derive(Clone, PartialEq, Message)]
pub struct Signs {
    #[prost(double, tag = "6")]
    pub zero_threshold: f64,
    #[prost(uint64, tag = "7")]
    pub zero_count: u64,
    #[prost(double, tag = "8")]
    pub zero_count_float: f64,
    #[prost(bytes = "vec", repeated, tag = "9")]
    pub negative_span: Vec<Vec<u8>>,
    #[prost(bytes = "vec", repeated, tag = "12")]
    pub positive_span: Vec<Vec<u8>>,
}

/// Of a native histogram what both layouts have.
#[derive(Clone, PartialEq, Message)]
pub struct Native {
    #[prost(double, tag = "2")]
    pub sum: f64,
    #[prost(double, optional, tag = "4")]
    pub count_float: Option<f64>,
    #[prost(sint32, tag = "5")]
    pub schema: i32,
    #[prost(double, tag = "6")]
    pub zero_threshold: f64,
    #[prost(uint64, optional, tag = "7")]
    pub zero_count: Option<u64>,
    #[prost(double, optional, tag = "8")]
    pub zero_count_float: Option<f64>,
    #[prost(message, repeated, tag = "9")]
    pub negative_span: Vec<infogw_proto::prometheus::BucketSpan>,
    #[prost(message, repeated, tag = "12")]
    pub positive_span: Vec<infogw_proto::prometheus::BucketSpan>,
}

/// What one with integer counts has. Those of the other layout are stepped over.
#[derive(Clone, PartialEq, Message)]
pub struct Integers {
    #[prost(uint64, optional, tag = "1")]
    pub count: Option<u64>,
    #[prost(sint64, repeated, tag = "10")]
    pub negative_delta: Vec<i64>,
    #[prost(sint64, repeated, tag = "13")]
    pub positive_delta: Vec<i64>,
}

/// What one with float counts has.
#[derive(Clone, PartialEq, Message)]
pub struct Floats {
    #[prost(double, repeated, tag = "11")]
    pub negative_count: Vec<f64>,
    #[prost(double, repeated, tag = "14")]
    pub positive_count: Vec<f64>,
}

/// Why families are refused that prost reads.
#[derive(Debug)]
pub struct NotTaken;

impl From<prost::DecodeError> for NotTaken {
    fn from(_: prost::DecodeError) -> Self {
        NotTaken
    }
}

/// The families of a stream.
pub fn read(mut stream: &[u8]) -> Result<Vec<MetricFamily>, prost::DecodeError> {
    let mut all = Vec::new();
    while !stream.is_empty() {
        all.push(MetricFamily::decode_length_delimited(&mut stream)?);
    }
    Ok(all)
}

/// The series that must come of families, each with its one sample or native histogram; `oldest` is what a timestamp must be.
pub fn expand(all: &[MetricFamily], limits: &DecodeLimits, oldest: i64) -> Result<Vec<go::TimeSeries>, NotTaken> {
    let mut series = Vec::new();
    for family in all.iter().filter(|family| !family.metric.is_empty()) {
        let mut last = i64::MIN;
        if family.name.is_empty() || !(0..=5).contains(&family.kind) {
            return Err(NotTaken);
        }
        for metric in &family.metric {
            let timestamp = metric.timestamp_ms.filter(|at| *at >= oldest.max(last)).ok_or(NotTaken)?;
            last = timestamp;
            let mut metric = Expansion { family, metric, limits, timestamp, series: &mut series };
            metric.all()?;
        }
    }
    Ok(series)
}

struct Expansion<'a> {
    family: &'a MetricFamily,
    metric: &'a Metric,
    limits: &'a DecodeLimits,
    timestamp: i64,
    series: &'a mut Vec<go::TimeSeries>,
}

impl Expansion<'_> {
    fn all(&mut self) -> Result<(), NotTaken> {
        let Metric { gauge, counter, summary, untyped, histogram, .. } = self.metric;
        let values = [gauge.is_some(), counter.is_some(), summary.is_some(), untyped.is_some(), histogram.is_some()];
        if values.iter().filter(|there| **there).count() != 1 {
            return Err(NotTaken);
        }
        let number = |number: &Option<Number>| number.as_ref().map(|number| number.value).ok_or(NotTaken);
        match self.family.kind {
            0 => self.number("", None, number(counter)?),
            1 => self.number("", None, number(gauge)?),
            2 => self.summary(summary.as_deref().ok_or(NotTaken)?),
            3 => self.number("", None, number(untyped)?),
            _ => self.histogram(histogram.as_deref().ok_or(NotTaken)?),
        }
    }

    fn summary(&mut self, bytes: &[u8]) -> Result<(), NotTaken> {
        let summary = Summary::decode(bytes)?;
        for quantile in &summary.quantile {
            self.number("", Some(("quantile", quantile.quantile)), quantile.value)?;
        }
        self.number("_sum", None, summary.sum)?;
        self.number("_count", None, summary.count as f64)
    }

    fn histogram(&mut self, bytes: &[u8]) -> Result<(), NotTaken> {
        let histogram = Classic::decode(bytes)?;
        if histogram.bucket.is_empty() {
            let signs = Signs::decode(bytes)?;
            if signs.zero_threshold > 0.0
                || signs.zero_count > 0
                || signs.zero_count_float > 0.0
                || !signs.negative_span.is_empty()
                || !signs.positive_span.is_empty()
            {
                return self.native(bytes);
            }
        }
        let count = |float: f64, int: u64| if float > 0.0 { float } else { int as f64 };
        for bucket in &histogram.bucket {
            let count = count(bucket.count_float, bucket.count);
            self.number("_bucket", Some(("le", bucket.upper_bound)), count)?;
        }
        let count = count(histogram.count_float, histogram.count);
        if !histogram.bucket.iter().any(|bucket| bucket.upper_bound == f64::INFINITY) {
            self.number("_bucket", Some(("le", f64::INFINITY)), count)?;
        }
        self.number("_sum", None, histogram.sum)?;
        self.number("_count", None, count)
    }

    fn native(&mut self, bytes: &[u8]) -> Result<(), NotTaken> {
        let native = Native::decode(bytes)?;
        let spans = |spans: &[infogw_proto::prometheus::BucketSpan]| -> Vec<go::Span> {
            spans.iter().map(|span| go::Span { offset: span.offset, length: span.length }).collect()
        };
        let bits = |floats: &[f64]| floats.iter().map(|float| float.to_bits()).collect::<Vec<_>>();
        let mut histogram = go::Histogram {
            sum: native.sum.to_bits(),
            schema: native.schema,
            zero_threshold: native.zero_threshold.to_bits(),
            negative_spans: spans(&native.negative_span),
            positive_spans: spans(&native.positive_span),
            reset_hint: if self.family.kind == 5 { 3 } else { 0 },
            timestamp: self.timestamp,
            ..go::Histogram::default()
        };
        if [native.count_float, native.zero_count_float].iter().flatten().any(|count| *count > 0.0) {
            let floats = Floats::decode(bytes)?;
            let count = |count: Option<f64>| count.map(|count| go::Count::Float(count.to_bits()));
            (histogram.count, histogram.zero_count) = (count(native.count_float), count(native.zero_count_float));
            histogram.negative_counts = bits(&floats.negative_count);
            histogram.positive_counts = bits(&floats.positive_count);
        } else {
            let integers = Integers::decode(bytes)?;
            histogram.count = integers.count.map(go::Count::Int);
            histogram.zero_count = native.zero_count.map(go::Count::Int);
            (histogram.negative_deltas, histogram.positive_deltas) = (integers.negative_delta, integers.positive_delta);
        }
        let labels = self.labels("", None)?;
        self.series.push(go::TimeSeries { labels, histograms: vec![histogram], ..Default::default() });
        Ok(())
    }

    fn number(&mut self, suffix: &str, added: Option<(&str, f64)>, value: f64) -> Result<(), NotTaken> {
        let sample = go::Sample { value: value.to_bits(), timestamp: self.timestamp };
        let labels = self.labels(suffix, added)?;
        self.series.push(go::TimeSeries { labels, samples: vec![sample], ..Default::default() });
        Ok(())
    }

    fn labels(&self, suffix: &str, added: Option<(&str, f64)>) -> Result<Vec<go::Label>, NotTaken> {
        let label = |name: &str, value: &str| go::Label { name: name.into(), value: value.into() };
        let own = self.metric.label.iter().map(|it| go::Label { name: it.name.clone(), value: it.value.clone() });
        let own: Vec<_> = own.collect();
        let name = label("__name__", &format!("{}{suffix}", self.family.name));
        // The name and what is sent are held to the limits; what an expansion adds is not.
        let sent: Vec<_> = [name.clone()].into_iter().chain(own.clone()).collect();
        let unnamed = DecodeLimits { label_name: usize::MAX, ..self.limits.clone() };
        oracle::canonical(&own, self.limits).ok_or(NotTaken)?;
        oracle::canonical(&sent, &unnamed).ok_or(NotTaken)?;
        let added = added.map(|(name, bound)| label(name, &go_float(bound)));
        let all: Vec<_> = [name].into_iter().chain(added).chain(own).collect();
        oracle::canonical(
            &all,
            &DecodeLimits { labels: usize::MAX, label_value: usize::MAX, unrepeatable: Vec::new(), ..unnamed },
        )
        .map(oracle::labels_of)
        .ok_or(NotTaken)
    }
}

/// `strconv.FormatFloat(value, 'g', -1, 64)`
fn go_float(value: f64) -> String {
    if value.is_nan() {
        return "NaN".to_owned();
    }
    let sign = if value.is_sign_negative() { "-" } else { "" };
    if value.is_infinite() {
        return if sign.is_empty() { "+Inf" } else { "-Inf" }.to_owned();
    }
    // The fewest digits that read back the same, without a point, and the power of ten of the first of them.
    let spelt = format!("{:e}", value.abs());
    let (digits, power) = spelt.split_once('e').expect("it has an exponent");
    let (digits, power): (String, i32) = (digits.replace('.', ""), power.parse().expect("it is a number"));
    let digits = digits.as_str();
    if value != 0.0 && !(-4..6).contains(&power) {
        let (first, others) = digits.split_at(1);
        let point = if others.is_empty() { "" } else { "." };
        let (e, power) = if power < 0 { ('-', -power) } else { ('+', power) };
        return format!("{sign}{first}{point}{others}e{e}{power:02}");
    }
    if power < 0 {
        return format!("{sign}0.{}{digits}", "0".repeat((-power - 1) as usize));
    }
    let whole = power as usize + 1;
    if digits.len() <= whole {
        return format!("{sign}{digits}{}", "0".repeat(whole - digits.len()));
    }
    let (whole, others) = digits.split_at(whole);
    format!("{sign}{whole}.{others}")
}
