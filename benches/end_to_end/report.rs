//! What was found: tables for people as it goes, and the same figures as JSON.

use std::{fs, path::Path};

use serde_json::{Map, Value, json};

use crate::{Outcome, Plan};

pub(crate) struct Report {
    sections: Map<String, Value>,
}

impl Report {
    pub(crate) fn new(plan: &Plan) -> Self {
        let machine = machine();
        println!("{machine}");
        println!(
            "{} series of {} labels and a name, {} rules, {} clusters, {} connections, {}, {} turns of {} s, {}",
            plan.series,
            plan.labels,
            plan.rules,
            plan.clusters,
            plan.connections,
            if plan.tls { "TLS" } else { "plaintext" },
            plan.rounds,
            plan.seconds,
            if plan.unpinned { "all on all cores" } else { "the server on one core, load and upstream on another" },
        );
        let mut sections = Map::new();
        let parameters = json!({
            "machine": machine, "series": plan.series, "labels": plan.labels, "rules": plan.rules, "clusters": plan.clusters,
            "connections": plan.connections, "tls": plan.tls, "rounds": plan.rounds, "seconds": plan.seconds, "pinned": !plan.unpinned,
        });
        sections.insert("parameters".to_owned(), parameters);
        Report { sections }
    }

    /// Prints a table and keeps its rows, each by the names of the columns.
    pub(crate) fn table(&mut self, name: &str, title: &str, columns: &[&str], rows: &[Vec<Cell>]) {
        println!("\n{title}\n");
        println!("| {} |", columns.join(" | "));
        println!("|{}|", columns.iter().map(|_| " --- ").collect::<Vec<_>>().join("|"));
        for row in rows {
            println!("| {} |", row.iter().map(Cell::show).collect::<Vec<_>>().join(" | "));
        }
        let rows = rows.iter().map(|row| {
            columns.iter().zip(row).map(|(column, cell)| ((*column).to_owned(), cell.json())).collect::<Map<_, _>>()
        });
        self.sections.insert(name.to_owned(), rows.collect());
    }

    pub(crate) fn write(&self, path: &Path) -> Outcome<()> {
        Ok(fs::write(path, serde_json::to_string_pretty(&self.sections)?)?)
    }
}

pub(crate) enum Cell {
    Text(String),
    /// With so many digits behind the point.
    Number(f64, usize),
    /// Not measured, or not to be compared.
    Nothing,
}

impl Cell {
    fn show(&self) -> String {
        match self {
            Cell::Text(text) => text.clone(),
            Cell::Number(number, digits) => format!("{number:.digits$}"),
            Cell::Nothing => String::new(),
        }
    }

    fn json(&self) -> Value {
        match self {
            Cell::Text(text) => json!(text),
            Cell::Number(number, _) => json!(number),
            Cell::Nothing => Value::Null,
        }
    }
}

pub(crate) fn median(figures: impl IntoIterator<Item = f64>) -> f64 {
    let mut figures: Vec<_> = figures.into_iter().collect();
    figures.sort_by(f64::total_cmp);
    match figures.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => figures[odd / 2],
        even => (figures[even / 2 - 1] + figures[even / 2]) / 2.0,
    }
}

/// Of the processor and the kernel.
fn machine() -> String {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let cpus = read("/proc/cpuinfo");
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    let model = model.trim_start_matches([' ', '\t', ':']);
    let cores = cpus.lines().filter(|line| line.starts_with("processor")).count();
    format!("{cores} cores of {model}, Linux {}", read("/proc/sys/kernel/osrelease").trim())
}
