//! What was found, as it is found: series by series, then the totals.

use std::{
    collections::BTreeMap,
    fmt::{self, Display, Write as _},
    io::{self, BufWriter, Stdout, Write as _},
    time::Duration,
};

use infogw_layers::{
    decode::DecodeError,
    describe,
    enforce::{Explained, selector},
    policy::Endpoint,
    rate_limit::Quota,
    rejection::Rejection,
};
use serde::{Serialize, Serializer};

use super::{
    super::{Exit, Failure},
    Format,
    sender::{Allowlist, Sender, ShownRule},
    series::{Labels, Series},
    stack::{Answer, Charged},
};

/// Writes what is found, and counts.
pub(super) struct Report<'s> {
    sender: &'s Sender<'s>,
    format: Format,
    out: Output,
    requests: Vec<RequestReport>,
    totals: Totals,
    /// Rules that no series has matched yet, by their places in the allowlist.
    unmatched: Vec<usize>,
    /// Of the request at hand.
    received: Count,
    /// Of all requests.
    charged: Charged,
}

#[derive(Debug, Clone, Copy, Default, Serialize)]
struct Count {
    series: u64,
    samples: u64,
}

impl Count {
    fn add(&mut self, samples: u64) {
        self.series += 1;
        self.samples += samples;
    }
}

impl Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Count { series, samples } = self;
        write!(f, "{series} series, {samples} {}", if *samples == 1 { "sample" } else { "samples" })
    }
}

/// Series are counted by what becomes of each by itself; a request that is refused takes all of them along.
#[derive(Debug, Default, Serialize)]
struct Totals {
    received: Count,
    kept: Count,
    dropped: Count,
    refused: Count,
    refused_by_reason: BTreeMap<&'static str, Count>,
    /// What is written in the end.
    forwarded: Count,
}

/// What comes of one request.
#[derive(Debug, Serialize)]
struct RequestReport {
    body_bytes: usize,
    received: Count,
    forwarded: Count,
    status: u16,
    /// Why it, or series in it, are refused: the reason, the layer, and the line that the sender reads.
    reason: Option<&'static str>,
    layer: Option<String>,
    answer: Option<String>,
    /// Why not all its series could be explained.
    unread: Option<String>,
}

#[derive(Serialize)]
struct SeriesReport<'a> {
    /// From 1.
    request: usize,
    outcome: &'static str,
    #[serde(serialize_with = "map")]
    labels: &'a Labels,
    samples: u64,
    /// What let it pass; none where all series pass.
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<ShownRule>,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "optional_map")]
    forwarded_labels: Option<&'a Labels>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    changes: Vec<Change<'a>>,
    /// It is another cluster's, and passes.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    foreign: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<&'a str>,
}

/// What becomes of a label; no `from` if it was not there, no `to` if it goes.
#[derive(Debug, PartialEq, Serialize)]
struct Change<'a> {
    label: &'a str,
    from: Option<&'a str>,
    to: Option<&'a str>,
}

#[derive(Serialize)]
struct SenderReport<'a> {
    endpoint: &'static str,
    cluster: &'a str,
    account: Option<&'a str>,
    tenant: Option<&'a str>,
    /// `rules`, `none` or `exempt`: all series pass without rules.
    allowlist: &'static str,
    /// Where it stands.
    allowlist_place: Option<String>,
    rules: usize,
    overrides: &'a [String],
    request_quota: Option<QuotaReport>,
    sample_quota: Option<QuotaReport>,
}

#[derive(Serialize)]
struct QuotaReport {
    per_second: f64,
    burst: u32,
    /// How long it takes to earn back what came to be counted here.
    seconds_to_earn_back: f64,
    /// What was counted at once is more than the burst.
    over_burst: bool,
}

impl QuotaReport {
    fn new(quota: Quota, spent: u64) -> Self {
        let (period, burst) = (quota.period().as_secs_f64(), quota.burst().get());
        let rounded = |number: f64| (number * 1e6).round() / 1e6;
        QuotaReport {
            per_second: rounded(1.0 / period),
            burst,
            seconds_to_earn_back: rounded(period * spent as f64),
            over_burst: spent > u64::from(burst),
        }
    }
}

impl<'s> Report<'s> {
    pub(super) fn new(sender: &'s Sender<'s>, format: Format) -> Self {
        let mut report = Report {
            sender,
            format,
            out: Output { out: BufWriter::new(io::stdout()), failed: None, lines: 0 },
            requests: Vec::new(),
            totals: Totals::default(),
            unmatched: (0..sender.rules().len()).collect(),
            received: Count::default(),
            charged: Charged::default(),
        };
        if format == Format::Json {
            report.out.write("{\"series\":[");
        }
        report
    }

    pub(super) fn begin_request(&mut self) {
        self.received = Count::default();
    }

    /// One series of the request at hand.
    pub(super) fn series(&mut self, series: &Series) {
        self.count(series);
        let request = self.requests.len() + 1;
        match self.format {
            Format::Text => self.out.write(&self.spelt(series)),
            Format::Json => {
                let report = self.reported(series, request);
                // Strings and numbers always serialise.
                let json = serde_json::to_string(&report).unwrap_or_default();
                self.out.element(&json);
            }
        }
    }

    fn count(&mut self, series: &Series) {
        let Totals { received, kept, dropped, refused, refused_by_reason, .. } = &mut self.totals;
        received.add(series.samples);
        self.received.add(series.samples);
        match &series.explained {
            Explained::Kept { rule, .. } => {
                kept.add(series.samples);
                if rule.is_some() && !self.unmatched.is_empty() {
                    let rules = self.sender.rules();
                    let matches = |rule: usize| {
                        rules.get(rule).is_some_and(|rule| rule.value.0.matches(&AsReceived(&series.labels)))
                    };
                    self.unmatched.retain(|rule| !matches(*rule));
                }
            }
            Explained::Dropped => dropped.add(series.samples),
            Explained::Refused(offence) => {
                refused.add(series.samples);
                refused_by_reason.entry(offence.reason.as_str()).or_default().add(series.samples);
            }
        }
    }

    /// The rule of a series that is kept.
    fn rule(&self, explained: &Explained) -> Option<ShownRule> {
        let Explained::Kept { rule: Some(rule), .. } = explained else { return None };
        self.sender.rules().get(*rule).map(|rule| self.sender.shown(rule))
    }

    fn reported<'a>(&self, series: &'a Series, request: usize) -> SeriesReport<'a> {
        let Series { labels, samples, explained } = series;
        let report = SeriesReport {
            request,
            outcome: outcome(explained),
            labels,
            samples: *samples,
            rule: self.rule(explained),
            forwarded_labels: None,
            changes: Vec::new(),
            foreign: false,
            reason: None,
            detail: None,
        };
        match explained {
            Explained::Kept { labels: after, foreign, .. } => SeriesReport {
                forwarded_labels: Some(after),
                changes: changes(labels, after),
                foreign: *foreign,
                ..report
            },
            Explained::Dropped => report,
            Explained::Refused(offence) => {
                SeriesReport { reason: Some(offence.reason.as_str()), detail: Some(&offence.what), ..report }
            }
        }
    }

    fn spelt(&self, series: &Series) -> String {
        let Series { labels, explained, .. } = series;
        let mut text = format!("{:<8} ", outcome(explained));
        let _ = match explained {
            Explained::Refused(offence) if labels.is_empty() => {
                writeln!(text, "{}{{?}}  {}: {}", offence.metric, offence.reason, offence.what)
            }
            Explained::Refused(offence) => {
                writeln!(text, "{}  {}: {}", Spelt(labels), offence.reason, offence.what)
            }
            Explained::Dropped => {
                let place = match &self.sender.allowlist {
                    Allowlist::Rules(rules) => format!(" of {}", self.sender.sources.place(&rules.place)),
                    Allowlist::Absent | Allowlist::Exempt => String::new(),
                };
                writeln!(text, "{}  no rule{place} selects it", Spelt(labels))
            }
            Explained::Kept { labels: after, foreign, .. } => {
                let why = match (self.rule(explained), &self.sender.allowlist) {
                    (Some(ShownRule { selector, place }), _) => format!("by `{selector}` ({place})"),
                    (None, Allowlist::Exempt) => "exempt from the allowlist".to_owned(),
                    (None, _) => "there is no allowlist".to_owned(),
                };
                let foreign = if *foreign { "; another cluster's, which is counted" } else { "" };
                let _ = writeln!(text, "{}  {why}{foreign}", Spelt(labels));
                for Change { label, from, to } in changes(labels, after) {
                    let label = Name(label);
                    let _ = match (from, to) {
                        (None, Some(to)) => writeln!(text, "  + {label}={to:?}"),
                        (Some(from), None) => writeln!(text, "  - {label}={from:?}"),
                        (from, to) => {
                            writeln!(text, "  ~ {label}={:?} -> {:?}", from.unwrap_or_default(), to.unwrap_or_default())
                        }
                    };
                }
                Ok(())
            }
        };
        text
    }

    /// The request at hand is over.
    pub(super) fn end_request(&mut self, body_bytes: usize, answer: Answer, unread: Option<DecodeError>) {
        let forwarded = answer
            .forwarded
            .map_or_else(Count::default, |encoded| Count { series: encoded.series as u64, samples: encoded.samples });
        self.charged.requests += answer.charged.requests;
        self.charged.samples += answer.charged.samples;
        self.totals.forwarded.series += forwarded.series;
        self.totals.forwarded.samples += forwarded.samples;
        let (rejection, line) = answer.refusal.unzip();
        self.requests.push(RequestReport {
            body_bytes,
            received: self.received,
            forwarded,
            status: answer.status.as_u16(),
            reason: rejection.as_ref().map(|rejection| rejection.reason().as_str()),
            layer: rejection.as_ref().and_then(Rejection::layer).map(describe::label),
            answer: line,
            unread: unread.map(|error| error.to_string()),
        });
    }

    /// Writes the totals. Says whether the sender would hear a refusal.
    ///
    /// # Errors
    /// If stdout cannot be written.
    pub(super) fn finish(mut self) -> Result<bool, Failure> {
        let sender = self.sender();
        let unmatched: Vec<_> = self.unmatched.iter().filter_map(|rule| self.sender.rules().get(*rule)).collect();
        let unmatched: Vec<_> = unmatched.into_iter().map(|rule| self.sender.shown(rule)).collect();
        let end = match self.format {
            Format::Text => self.text(&sender, &unmatched),
            Format::Json => {
                let part = |name: &str, json: serde_json::Result<String>| {
                    format!(",\n\"{name}\":{}", json.unwrap_or_default())
                };
                format!(
                    "\n]{}{}{}{}}}\n",
                    part("sender", serde_json::to_string(&sender)),
                    part("requests", serde_json::to_string(&self.requests)),
                    part("totals", serde_json::to_string(&self.totals)),
                    part("unmatched_rules", serde_json::to_string(&unmatched)),
                )
            }
        };
        self.out.write(&end);
        self.out.finish()?;
        Ok(self.requests.iter().any(|request| request.answer.is_some()))
    }

    fn sender(&self) -> SenderReport<'s> {
        let Sender { endpoint, identity, terms, allowlist, overrides, .. } = self.sender;
        let (allowlist, place) = match allowlist {
            Allowlist::Rules(rules) => ("rules", Some(self.sender.sources.place(&rules.place))),
            Allowlist::Absent => ("none", None),
            Allowlist::Exempt => ("exempt", None),
        };
        SenderReport {
            endpoint: match endpoint {
                Endpoint::Upload => "upload",
                Endpoint::Receive => "receive",
            },
            cluster: identity.cluster.as_str(),
            account: identity.account.as_deref(),
            tenant: terms.tenant.as_ref().and_then(|tenant| tenant.header.to_str().ok()),
            allowlist,
            allowlist_place: place,
            rules: self.sender.rules().len(),
            overrides,
            request_quota: terms.request_quota.map(|quota| QuotaReport::new(quota, self.charged.requests)),
            sample_quota: terms.sample_quota.map(|quota| QuotaReport::new(quota, self.charged.samples)),
        }
    }

    fn text(&self, sender: &SenderReport<'_>, unmatched: &[ShownRule]) -> String {
        let Totals { received, kept, dropped, refused, refused_by_reason, forwarded } = &self.totals;
        let mut lines: Vec<(&str, String)> = Vec::new();
        let account = sender.account.map_or_else(String::new, |account| format!(" of account {account:?}"));
        let path = match self.sender.endpoint {
            Endpoint::Upload => "/upload",
            Endpoint::Receive => "/metrics/v1/receive",
        };
        lines.push(("sender", format!("cluster {:?}{account}, at {path}", sender.cluster)));
        if let Some(tenant) = sender.tenant {
            lines.push(("tenant", tenant.to_owned()));
        }
        lines.extend(sender.overrides.iter().map(|key| ("override", key.clone())));
        lines.push((
            "allowlist",
            match (&sender.allowlist_place, sender.allowlist) {
                (Some(place), _) => format!("{} of {place}", numbered(sender.rules as u64, "rule", "rules")),
                (None, "exempt") => "none holds for this sender: all series pass".to_owned(),
                (None, _) => "none: all series pass".to_owned(),
            },
        ));
        let requests = numbered(self.requests.len() as u64, "request", "requests");
        lines.push(("received", format!("{received}, in {requests}")));
        lines.push(("kept", kept.to_string()));
        lines.push(("dropped", dropped.to_string()));
        let reasons = refused_by_reason.iter().map(|(reason, count)| format!("; {reason}: {}", count.series));
        lines.push(("refused", format!("{refused}{}", reasons.collect::<String>())));
        let lost = if forwarded.series < kept.series { "; what else is kept is refused with its request" } else { "" };
        lines.push(("forwarded", format!("{forwarded}{lost}")));
        for (index, request) in (1..).zip(&self.requests) {
            let of = if self.requests.len() == 1 { String::new() } else { format!("request {index}: ") };
            if let Some(unread) = &request.unread {
                lines.push(("unread", format!("{of}not all series could be explained: {unread}")));
            }
            match &request.answer {
                Some(answer) => lines.push(("answer", format!("{of}{} {answer}", request.status))),
                None if self.requests.len() > 1 => {}
                None if request.forwarded.series > 0 => lines.push(("answer", "as the upstream answers".to_owned())),
                None => lines.push(("answer", format!("{}, and nothing is left to write", request.status))),
            }
        }
        if self.sender.endpoint == Endpoint::Upload
            && let Some(quota) = self.sender.terms.request_quota
        {
            lines.push(("quota", format!("one upload in {}", humantime::format_duration(quota.period()))));
        } else if let Some(quota) = &sender.request_quota {
            lines.push(("quota", quota.told(self.charged.requests, ["request", "requests"])));
        }
        if let Some(quota) = &sender.sample_quota {
            lines.push(("quota", quota.told(self.charged.samples, ["sample", "samples"])));
        }
        for ShownRule { selector, place } in unmatched {
            lines.push(("unmatched", format!("`{selector}` ({place})")));
        }
        let mut text = if received.series == 0 { String::new() } else { "\n".to_owned() };
        for (name, value) in lines {
            let _ = writeln!(text, "{name:<11}{}", value.replace(char::is_control, " "));
        }
        text
    }
}

impl QuotaReport {
    fn told(&self, spent: u64, [one, many]: [&str; 2]) -> String {
        let QuotaReport { per_second, burst, seconds_to_earn_back, over_burst } = self;
        let spent = numbered(spent, one, many);
        // Whole seconds say enough.
        let back = humantime::format_duration(Duration::from_secs(seconds_to_earn_back.ceil() as u64));
        let over = if *over_burst { ", more than the burst" } else { "" };
        format!("{per_second} {many} a second, a burst of {burst}: {spent}{over}; to earn that back takes {back}")
    }
}

fn numbered(count: u64, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

fn outcome(explained: &Explained) -> &'static str {
    match explained {
        Explained::Kept { .. } => "kept",
        Explained::Dropped => "dropped",
        Explained::Refused(_) => "refused",
    }
}

/// What became of each label that is not as it was. Both are sorted by name.
fn changes<'a>(before: &'a Labels, after: &'a Labels) -> Vec<Change<'a>> {
    let mut changes: BTreeMap<&str, Change<'_>> = BTreeMap::new();
    for (label, value) in before {
        changes.insert(label, Change { label, from: Some(value), to: None });
    }
    for (label, value) in after {
        changes.entry(label).or_insert(Change { label, from: None, to: None }).to = Some(value);
    }
    changes.into_values().filter(|change| change.from != change.to).collect()
}

/// Labels as a selector asks for them.
struct AsReceived<'a>(&'a Labels);

impl selector::Labels for AsReceived<'_> {
    fn value(&self, name: &str) -> &str {
        let found = self.0.binary_search_by(|(other, _)| (**other).cmp(name)).ok();
        found.and_then(|at| self.0.get(at)).map_or("", |(_, value)| value)
    }
}

fn map<S: Serializer>(labels: &&Labels, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(labels.iter().map(|(name, value)| (&**name, &**value)))
}

fn optional_map<S: Serializer>(labels: &Option<&Labels>, serializer: S) -> Result<S::Ok, S::Error> {
    map(&labels.unwrap_or(&Labels::new()), serializer)
}

/// A series as PromQL spells it. What is not printable is escaped.
struct Spelt<'a>(&'a Labels);

impl Display for Spelt<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_name = |(label, value): &(Box<str>, Box<str>)| &**label == "__name__" && is_plain(value);
        if let Some((_, name)) = self.0.iter().find(|label| is_name(label)) {
            f.write_str(name)?;
        }
        f.write_char('{')?;
        for (index, (label, value)) in self.0.iter().filter(|label| !is_name(label)).enumerate() {
            write!(f, "{}{}={value:?}", if index == 0 { "" } else { "," }, Name(label))?;
        }
        f.write_char('}')
    }
}

/// A label's name, quoted where it must be.
struct Name<'a>(&'a str);

impl Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if is_plain(self.0) { f.write_str(self.0) } else { write!(f, "{:?}", self.0) }
    }
}

fn is_plain(name: &str) -> bool {
    name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b':'))
        && !name.starts_with(|first: char| first.is_ascii_digit())
}

/// Stdout. That nobody reads it any more is no failure, and then nothing more is written.
struct Output {
    out: BufWriter<Stdout>,
    failed: Option<io::Error>,
    /// Elements of an array so far.
    lines: u64,
}

impl Output {
    fn write(&mut self, text: &str) {
        if self.failed.is_none() {
            self.failed = self.out.write_all(text.as_bytes()).err();
        }
    }

    fn element(&mut self, json: &str) {
        self.write(if self.lines == 0 { "\n" } else { ",\n" });
        self.lines += 1;
        self.write(json);
    }

    fn finish(mut self) -> Result<(), Failure> {
        match self.failed.or_else(|| self.out.flush().err()) {
            Some(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                Err(Failure::new(Exit::Unavailable, format_args!("stdout: {error}")))
            }
            _ => Ok(()),
        }
    }
}
