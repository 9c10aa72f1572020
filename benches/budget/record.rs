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
    // The same in each of many runs.
    Column { name: "allocations", of: |figures| figures.allocations, tolerance: 0.0 },
    // A body may be some bytes longer: what time it is compresses differently.
    Column { name: "bytes allocated", of: |figures| figures.allocated, tolerance: 1.0 },
    Column { name: "bytes at peak", of: |figures| figures.peak, tolerance: 1.0 },
    // Runs differ by 0.1 %: hash maps are seeded at random, and time goes by. The rest is for other machines: the system's
    // allocator and copying are part of it, and libraries pick code by what the processor can do.
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
        let (mut line, mut unrecorded) = (format!("{name:32}"), false);
        for column in &COLUMNS {
            let (now, recorded) = ((column.of)(&figures), (column.of)(&recorded));
            let change = now.zip(recorded).map(|(now, recorded)| change(now, recorded));
            let shown = now.map(|now| now.to_string());
            line += &format!("{:>18}{:>8}", shown.unwrap_or_default(), change.unwrap_or_default());
            match (now, recorded) {
                (Some(now), Some(recorded)) if column.is_up(now, recorded) => {
                    let Column { name: what, tolerance, .. } = column;
                    self.up.push(format!("{name}: {now} {what}, recorded are {recorded} (+{tolerance} % pass); {HOW}"));
                }
                (Some(now), Some(recorded)) => self.down |= column.is_down(now, recorded),
                (Some(_), None) => unrecorded = true,
                (None, _) => {}
            }
        }
        if unrecorded {
            self.up.push(format!("{name}: not recorded; {HOW}"));
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

/// In per cent, if there is any to speak of.
fn change(now: u64, recorded: u64) -> String {
    let per_cent = (now as f64 / recorded as f64 - 1.0) * 100.0;
    if now == recorded || per_cent.abs() < 0.05 { String::new() } else { format!("{per_cent:+.1} %") }
}
