//! What is measured, beside what was recorded.

use std::{collections::BTreeMap, fs};

use serde::{Deserialize, Serialize};

use crate::Outcome;

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/budget/recorded.json");
const HOW: &str = "`cargo bench --bench budget -- --record` records anew";

/// What one request takes.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(crate) struct Figures {
    pub(crate) allocations: Option<u64>,
    /// Bytes of all allocations together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) allocated: Option<u64>,
    /// Bytes allocated at a time, at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) peak: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) instructions: Option<u64>,
}

/// A kind of figure.
struct Column {
    name: &'static str,
    of: fn(&Figures) -> Option<u64>,
    /// By how much it may differ from its record, in per cent.
    tolerance: f64,
}

const COLUMNS: [Column; 4] = [
    // The same in each run.
    Column { name: "allocations", of: |figures| figures.allocations, tolerance: 0.0 },
    // A body may be some bytes longer: what time it is compresses differently.
    Column { name: "bytes allocated", of: |figures| figures.allocated, tolerance: 1.0 },
    Column { name: "bytes at peak", of: |figures| figures.peak, tolerance: 1.0 },
    // Runs differ by 0.2 %: hash maps are seeded at random. The rest is for other machines: libraries pick code by what the
    // processor can do.
    Column { name: "instructions", of: |figures| figures.instructions, tolerance: 3.0 },
];

impl Column {
    fn is_up(&self, now: u64, recorded: u64) -> bool {
        now as f64 > recorded as f64 * (1.0 + self.tolerance / 100.0)
    }

    fn is_down(&self, now: u64, recorded: u64) -> bool {
        (now as f64) < recorded as f64 * (1.0 - self.tolerance / 100.0)
    }
}

/// Figures by what they are of.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Record(BTreeMap<String, Figures>);

impl Record {
    pub(crate) fn read() -> Outcome<Self> {
        let text = fs::read_to_string(FILE).map_err(|error| format!("{FILE}: {error}; {HOW}"))?;
        Ok(serde_json::from_str(&text).map_err(|error| format!("{FILE}: {error}; {HOW}"))?)
    }
}

/// What comes of a run.
pub(crate) struct Report {
    record: Record,
    measured: Vec<(String, Figures)>,
    /// A line for each that fails.
    up: Vec<String>,
    down: bool,
}

impl Report {
    /// Prints the heading.
    pub(crate) fn new(record: Record) -> Self {
        let columns: String = COLUMNS.iter().map(|column| format!("{:>18}{:8}", column.name, "")).collect();
        println!("{}", format!("{:32}{columns}", "a request").trim_end());
        Report { record, measured: Vec::new(), up: Vec::new(), down: false }
    }

    /// Prints a line: each figure, and by how much it differs from its record.
    pub(crate) fn add(&mut self, name: String, figures: Figures) {
        let recorded = self.record.0.get(&name).copied().unwrap_or_default();
        let mut line = format!("{name:32}");
        for column in &COLUMNS {
            let (now, recorded) = ((column.of)(&figures), (column.of)(&recorded));
            let change = now.zip(recorded).map(|(now, recorded)| change(now, recorded));
            let shown = now.map(|now| now.to_string());
            line += &format!("{:>18}{:>8}", shown.unwrap_or_default(), change.as_deref().unwrap_or_default());
            match (now, recorded) {
                (Some(now), Some(recorded)) if column.is_up(now, recorded) => {
                    let Column { name: what, tolerance, .. } = column;
                    let limit = format!("{recorded} are recorded and {tolerance} % more let pass");
                    self.up.push(format!("{name}: {now} {what}, where {limit}; {HOW}"));
                }
                (Some(now), Some(recorded)) => self.down |= column.is_down(now, recorded),
                (Some(now), None) => self.up.push(format!("{name}: {now} {}, and no record; {HOW}", column.name)),
                (None, _) => {}
            }
        }
        println!("{}", line.trim_end());
        self.measured.push((name, figures));
    }

    /// # Errors
    /// Every step up.
    pub(crate) fn verdict(&self) -> Outcome<()> {
        if self.down {
            println!("less than what is recorded: renew the record, or it lets as much come back; {HOW}");
        }
        if self.up.is_empty() { Ok(()) } else { Err(self.up.join("\nerror: ").into()) }
    }

    /// Writes what was measured, a line each.
    pub(crate) fn record(&self) -> Outcome<()> {
        let line = |(name, figures): &(String, Figures)| {
            Ok(format!("  {}: {}", serde_json::to_string(name)?, serde_json::to_string(figures)?))
        };
        let lines = self.measured.iter().map(line).collect::<Outcome<Vec<_>>>()?;
        fs::write(FILE, format!("{{\n{}\n}}\n", lines.join(",\n")))?;
        println!("recorded in {FILE}");
        Ok(())
    }
}

/// Per cent, or the difference where there was nothing.
fn change(now: u64, recorded: u64) -> String {
    match (now, recorded) {
        _ if now == recorded => String::new(),
        (_, 0) => format!("+{now}"),
        _ => format!("{:+.1} %", (now as f64 / recorded as f64 - 1.0) * 100.0),
    }
}
