//! Durations as Go's `time.ParseDuration` reads them: `4m30s`, `1.5h`, `100ms`, `0`.

use std::time::Duration;

/// Not a duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a duration; write it like 4m30s, 1.5h or 100ms")]
pub struct NotADuration(String);

/// Reads a duration. Negative ones are none here: nothing that we wait for can lie in the past.
///
/// # Errors
/// [`NotADuration`].
pub fn parse(text: &str) -> Result<Duration, NotADuration> {
    nanoseconds(text).map(Duration::from_nanos).ok_or_else(|| NotADuration(text.to_owned()))
}

/// A duration as [`parse`] reads it.
pub fn written(duration: Duration) -> String {
    if duration.subsec_nanos() > 0 {
        return format!("{}ns", duration.as_nanos());
    }
    let seconds = duration.as_secs();
    let parts = [(seconds / 3600, "h"), (seconds / 60 % 60, "m"), (seconds % 60, "s")];
    let parts: String =
        parts.iter().filter(|(count, _)| *count > 0).map(|(count, unit)| format!("{count}{unit}")).collect();
    if parts.is_empty() { "0s".to_owned() } else { parts }
}

fn nanoseconds(text: &str) -> Option<u64> {
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Some(0);
    }
    if rest.is_empty() {
        return None;
    }
    let mut total = 0f64;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(digits);
        let unit_len = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_len);
        let unit = match unit {
            "ns" => 1e0,
            "us" | "µs" | "μs" => 1e3,
            "ms" => 1e6,
            "s" => 1e9,
            "m" => 60e9,
            "h" => 3600e9,
            _ => return None,
        };
        total += number.parse::<f64>().ok()? * unit;
        rest = tail;
    }
    // Go's durations are int64 nanoseconds.
    (total <= i64::MAX as f64).then_some(total.round() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_go_reads() {
        let rows = [
            ("0", 0),
            ("0s", 0),
            ("4m30s", 270_000),
            ("+5s", 5_000),
            ("1.5h", 5_400_000),
            (".5s", 500),
            ("1.s", 1_000),
            ("100ms", 100),
            ("1h1m1s1ms", 3_661_001),
            ("2000us", 2),
            ("2000µs", 2),
        ];
        for (text, millis) in rows {
            let duration = Duration::from_millis(millis);
            assert_eq!(parse(text), Ok(duration), "{text}");
            assert_eq!(parse(&written(duration)), Ok(duration), "{text}");
        }
        assert_eq!(written(Duration::from_secs(270)), "4m30s");
        for text in ["", "5", "s", "-5s", "5 s", "5d", "1..5s", "5S", "9999999h", ".", "1e3s", "4m30"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
