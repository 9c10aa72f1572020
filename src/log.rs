//! Logs as telemeter-server writes them: logfmt on stderr, `msg` and then fields, so that what people grep for stays.

use std::{
    fmt::{self, Write as _},
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
    level_filters::LevelFilter,
};
use tracing_subscriber::{
    filter::Targets,
    fmt::{FmtContext, FormatEvent, FormatFields, format::Writer},
    layer::SubscriberExt as _,
    registry::LookupSpan,
};

/// Begins to log, from `level` up. Only the first call of a process counts.
pub fn init(level: Level) {
    let level = LevelFilter::from_level(level);
    // What OpenTelemetry says of an export quotes those who take spans, who may quote our key; it is told by `traces`.
    let targets = Targets::new()
        .with_default(level)
        .with_target("opentelemetry", level.min(LevelFilter::WARN))
        .with_target("opentelemetry-otlp", LevelFilter::OFF);
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(std::io::stderr)
        .event_format(Logfmt)
        .finish()
        .with(targets);
    let _ = tracing::subscriber::set_global_default(subscriber);
}

/// Lets through one line a second, of lines that others can bring about as often as they like.
#[derive(Debug, Default)]
pub(crate) struct Seldom {
    /// Milliseconds from the first line of this process; 0: there was none yet.
    next: AtomicU64,
    held_back: AtomicU64,
}

impl Seldom {
    /// Whether a line is let through: how many were not since the last one.
    pub(crate) fn pass(&self) -> Option<u64> {
        static SINCE: LazyLock<Instant> = LazyLock::new(Instant::now);
        self.pass_at(SINCE.elapsed().as_millis() as u64)
    }

    fn pass_at(&self, now: u64) -> Option<u64> {
        let next = self.next.load(Ordering::Relaxed);
        // Of those that come at once one is let through.
        let passes =
            now >= next && self.next.compare_exchange(next, now + 1000, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        if passes {
            return Some(self.held_back.swap(0, Ordering::Relaxed));
        }
        self.held_back.fetch_add(1, Ordering::Relaxed);
        None
    }
}

struct Logfmt;

impl<S, N> FormatEvent<S, N> for Logfmt
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let level = match *event.metadata().level() {
            Level::ERROR => "error",
            Level::WARN => "warn",
            Level::INFO => "info",
            Level::DEBUG => "debug",
            Level::TRACE => "trace",
        };
        let now = humantime::format_rfc3339_millis(std::time::SystemTime::now());
        write!(out, "level={level} ts={now}")?;
        let mut fields = Fields { message: String::new(), rest: String::new() };
        event.record(&mut fields);
        writeln!(out, " msg={}{}", always_quoted(&fields.message), fields.rest)
    }
}

/// The message goes first.
struct Fields {
    message: String,
    rest: String,
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, &format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value);
    }
}

impl Fields {
    fn put(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.message.push_str(value);
        } else {
            // Writing to a String cannot fail.
            let _ = write!(self.rest, " {}={}", field.name(), quoted(value));
        }
    }
}

fn quoted(value: &str) -> String {
    let plain =
        !value.is_empty() && !value.contains(|c: char| c <= ' ' || matches!(c, '"' | '=' | '\\') || c.is_control());
    if plain { value.to_owned() } else { always_quoted(value) }
}

/// Go's `%q`, near enough: one line, whatever a client put into it.
fn always_quoted(value: &str) -> String {
    format!("{value:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_a_second_is_let_through() {
        let seldom = Seldom::default();
        let passed: Vec<_> = [0, 1, 999, 1000, 1001, 5000, 5999, 6000].iter().map(|&now| seldom.pass_at(now)).collect();
        assert_eq!(passed, [Some(0), None, None, Some(2), None, Some(1), None, Some(1)]);
    }
}
