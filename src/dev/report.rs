//! A line a second about what passes: what arrived behind the gateway, and what it counted itself.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::{self, Write as _},
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::time::{Instant, MissedTickBehavior, interval_at};

use super::{
    api::Api,
    store::{Passed, Store},
};

const DROPPED: &str = "infogw_series_dropped_total{";
const REFUSED: &str = "infogw_rejections_total{";

/// Prints `text`. False once nobody reads it any more.
pub(super) fn print(text: &str) -> bool {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).is_ok()
}

/// Prints the lines.
pub(super) struct Report {
    api: Api,
    metrics: String,
    store: Arc<Store>,
    counters: Counters,
}

/// The gateway's counters that are reported, by name and labels.
type Counters = BTreeMap<String, u64>;

impl Report {
    /// Reads the gateway's metrics at this URL, as a Prometheus would.
    pub(super) fn new(api: Api, metrics: String, store: Arc<Store>) -> Self {
        Report { api, metrics, store, counters: Counters::new() }
    }

    /// Prints a line a second until nobody reads them.
    pub(super) async fn run(mut self) {
        const SECOND: Duration = Duration::from_secs(1);
        let mut seconds = interval_at(Instant::now() + SECOND, SECOND);
        seconds.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            seconds.tick().await;
            let exposed = self.api.read(&self.metrics).await;
            let counters = counters(&exposed.body);
            let events = events(&self.counters, &counters);
            // An unreadable answer must not make the next one count from zero.
            if exposed.is_success() {
                self.counters = counters;
            }
            let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
            let line = line(&self.store.take_passed(), &events);
            if !print(&format!("{} {line}\n", now.get(11..).unwrap_or_default())) {
                return;
            }
        }
    }
}

fn counters(exposed: &str) -> Counters {
    let reported = exposed.lines().filter(|line| line.starts_with(DROPPED) || line.starts_with(REFUSED));
    let counter = |line: &str| {
        let (name, value) = line.rsplit_once(' ')?;
        Some((name.to_owned(), value.parse::<f64>().ok()? as u64))
    };
    reported.filter_map(counter).collect()
}

/// How much each counter grew, where it did.
fn events(before: &Counters, after: &Counters) -> Counters {
    let grown = after
        .iter()
        .map(|(name, count)| (name.clone(), count.saturating_sub(before.get(name).copied().unwrap_or_default())));
    grown.filter(|(_, count)| *count > 0).collect()
}

fn line(passed: &Passed, events: &Counters) -> String {
    let samples: u64 = passed.samples.values().sum();
    let mut line = format!("passed {samples} samples in {} bytes", passed.bytes);
    let mut before = "";
    // Writing to a String cannot fail.
    for ((tenant, cluster), samples) in &passed.samples {
        if tenant.as_str() != before || before.is_empty() {
            let _ = write!(line, "; {}:", tenant.trim_start_matches("dev-").escape_debug());
            before = tenant;
        }
        let _ = write!(line, " {} {samples}", cluster.escape_debug());
    }
    let of = |prefix: &str| events.iter().filter(move |(name, _)| name.starts_with(prefix)).collect::<Vec<_>>();
    for (word, prefix) in [(" | dropped:", DROPPED), (" | refused:", REFUSED)] {
        for (index, (name, count)) in of(prefix).into_iter().enumerate() {
            let start = if index == 0 { word } else { "," };
            let _ = write!(line, "{start} {}", label(name, "route"));
            for more in [label(name, "layer"), label(name, "reason")] {
                let space = if more.is_empty() { "" } else { " " };
                let _ = write!(line, "{space}{more}");
            }
            let _ = write!(line, " {count}");
        }
    }
    line
}

/// The label's value in an exposed name; these are from closed lists and hold no quotes.
fn label<'n>(name: &'n str, label: &str) -> &'n str {
    let value = name.split_once(&format!("{label}=\"")).map(|(_, rest)| rest);
    value.and_then(|rest| rest.split('"').next()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_passed_and_what_did_not() {
        let before = counters("infogw_series_dropped_total{route=\"receive\"} 5\nother_total 4\n");
        let after = counters(
            "# HELP infogw_rejections_total x\n\
             infogw_rejections_total{layer=\"enforce_labels\",reason=\"cluster_label\",route=\"receive\"} 1\n\
             infogw_rejections_total{layer=\"rate_limit\",reason=\"rate_limited\",route=\"upload\"} 2\n\
             infogw_series_dropped_total{route=\"receive\"} 9\n\
             infogw_series_dropped_total{route=\"upload\"} 0\n",
        );
        let mut passed = Passed { bytes: 900, ..Passed::default() };
        for (tenant, cluster, samples) in [("dev-upload", "a", 3), ("dev-upload", "b", 4), ("dev-remote-write", "c", 5)]
        {
            passed.samples.insert((tenant.to_owned(), cluster.to_owned()), samples);
        }
        assert_eq!(
            line(&passed, &events(&before, &after)),
            "passed 12 samples in 900 bytes; remote-write: c 5; upload: a 3 b 4 | dropped: receive 4 \
             | refused: receive enforce_labels cluster_label 1, upload rate_limit rate_limited 2"
        );
        assert_eq!(line(&Passed::default(), &Counters::new()), "passed 0 samples in 0 bytes");
    }
}
