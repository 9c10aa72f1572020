//! The parts of a run.

use std::{thread, time::Duration};

use crate::{
    Outcome, Plan, Section,
    load::{Arrivals, Spec},
    report::{Cell, Report, median},
    subject::{Kind, Setup, Subject, Turn, World},
};

const MIB: f64 = 1024.0 * 1024.0;
const KIB: f64 = 1024.0;

pub(crate) fn run(plan: &Plan, report: &mut Report) -> Outcome<()> {
    if plan.has(Section::Table) || plan.has(Section::Overload) {
        table(plan, report)?;
    }
    if plan.has(Section::Series) {
        series(plan, report)?;
    }
    if plan.has(Section::Rules) {
        rules(plan, report)?;
    }
    if plan.has(Section::Clusters) {
        clusters(plan, report)?;
    }
    if plan.has(Section::Memory) {
        memory(plan, report)?;
    }
    if plan.has(Section::Slow) {
        slow(plan, report)?;
    }
    Ok(())
}

/// All turns of one subject under one load.
#[derive(Default)]
struct Turns(Vec<Turn>);

impl Turns {
    fn median(&self, figure: impl Fn(&Turn) -> f64) -> f64 {
        median(self.0.iter().map(figure))
    }

    fn cpu(&self) -> f64 {
        self.median(|turn| turn.cpu)
    }

    /// Answers a second.
    fn rate(&self) -> f64 {
        self.median(|turn| {
            (turn.counted.accepted.requests + turn.counted.refused.requests) as f64 / turn.counted.seconds
        })
    }

    fn spread(&self) -> Cell {
        let cpus = self.0.iter().map(|turn| turn.cpu);
        Cell::Text(format!("{:.0}..{:.0}", cpus.clone().fold(f64::MAX, f64::min), cpus.fold(0.0, f64::max)))
    }
}

/// Each subject in turn, round after round.
fn take_turns(plan: &Plan, subjects: &[Subject], load: impl Fn(usize, &Subject) -> Spec) -> Outcome<Vec<Turns>> {
    let mut turns: Vec<_> = subjects.iter().map(|_| Turns::default()).collect();
    for _ in 0..plan.rounds {
        for (n, subject) in subjects.iter().enumerate() {
            turns[n].0.push(subject.turn_of(&load(n, subject))?);
        }
    }
    Ok(turns)
}

fn warm_up(plan: &Plan, subjects: &[Subject]) -> Outcome<()> {
    let closed = Arrivals::Closed { connections: plan.connections };
    subjects.iter().try_for_each(|subject| {
        subject.turn(&Plan { seconds: plan.seconds.min(1.0), ..plan.clone() }, closed).map(drop)
    })
}

/// Requests a second that a subject can take, by what it did on few connections, and at a third of that on many: a request costs more
/// where a thousand connections are open, so that what a few of them reach is beyond saturation.
fn saturation(full: &Turns, third: &Turns) -> f64 {
    full.rate().min(1e6 / third.cpu())
}

fn table(plan: &Plan, report: &mut Report) -> Outcome<()> {
    let world = World::new(plan, plan.tls)?;
    let setup = Setup::of(plan);
    let mut kinds = plan.subjects.clone();
    if plan.against.is_some() {
        kinds.extend([Kind::OtherReceive, Kind::OtherUpload]);
    }
    let subjects = kinds.iter().map(|&kind| Subject::start(kind, &world, &setup)).collect::<Outcome<Vec<_>>>()?;
    warm_up(plan, &subjects)?;
    let closed = Arrivals::Closed { connections: plan.connections };
    let full = take_turns(plan, &subjects, |_, subject| subject.spec(plan, closed))?;
    let open = |rate| Arrivals::Open { rate, connections: plan.open_connections };
    let third = take_turns(plan, &subjects, |n, subject| subject.spec(plan, open(full[n].rate() / 3.0)))?;
    let saturation: Vec<_> = full.iter().zip(&third).map(|(full, third)| saturation(full, third)).collect();
    let half = take_turns(plan, &subjects, |n, subject| subject.spec(plan, open(saturation[n] / 2.0)))?;
    let of = |kind| kinds.iter().position(|&other| other == kind).map(|n| full[n].cpu());
    let rows: Vec<_> = kinds
        .iter()
        .enumerate()
        .map(|(n, &kind)| {
            let ratio =
                |other: Option<f64>| other.map_or(Cell::Nothing, |other| Cell::Number(full[n].cpu() / other, 2));
            vec![
                Cell::Text(kind.name().to_owned()),
                Cell::Number(full[n].cpu(), 0),
                full[n].spread(),
                ratio(of(Kind::Bare)),
                ratio(of(Kind::Floor)),
                kind.counterpart().and_then(of).map_or(Cell::Nothing, |other| Cell::Number(full[n].cpu() / other, 4)),
                Cell::Number(full[n].rate(), 0),
                Cell::Number(saturation[n], 0),
                Cell::Number(half[n].cpu(), 0),
                Cell::Number(half[n].median(|turn| turn.counted.accepted.p50), 2),
                Cell::Number(half[n].median(|turn| turn.counted.accepted.p99), 2),
                Cell::Number(half[n].median(|turn| turn.counted.accepted.p999), 2),
                Cell::Number(half[n].median(|turn| turn.counted.late.p99), 2),
                Cell::Number(full[n].median(|turn| turn.peak) / MIB, 1),
            ]
        })
        .collect();
    let columns = [
        "subject",
        "CPU µs",
        "from..to",
        "x bare",
        "x floor",
        "x other",
        "requests/s",
        "saturation/s",
        "CPU µs at half",
        "p50 ms at half",
        "p99 ms at half",
        "p99.9 ms at half",
        "sent late p99 ms",
        "peak MiB",
    ];
    let [body, decoded] = [full[0].0[0].counted.body, full[0].0[0].counted.decoded];
    let title =
        format!("A request ({decoded} bytes decoded, {body} on the wire), and how long it takes at half of saturation");
    report.table("table", &title, &columns, &rows);
    if plan.has(Section::Overload) {
        overload(plan, report, &subjects, &saturation)?;
    }
    Ok(())
}

fn overload(plan: &Plan, report: &mut Report, subjects: &[Subject], saturation: &[f64]) -> Outcome<()> {
    let twice = |n: usize| Arrivals::Open { rate: saturation[n] * 2.0, connections: plan.open_connections };
    let mut rows = Vec::new();
    let turns = take_turns(plan, subjects, |n, subject| Spec { warm_up: 1.0, ..subject.spec(plan, twice(n)) })?;
    for (n, turns) in turns.iter().enumerate() {
        let a_second = |requests: fn(&Turn) -> u64| turns.median(|turn| requests(turn) as f64 / turn.counted.seconds);
        rows.push(vec![
            Cell::Text(subjects[n].kind.name().to_owned()),
            Cell::Number(saturation[n] * 2.0, 0),
            Cell::Number(a_second(|turn| turn.counted.accepted.requests), 0),
            Cell::Number(turns.median(|turn| turn.counted.accepted.p50), 1),
            Cell::Number(turns.median(|turn| turn.counted.accepted.p99), 1),
            Cell::Number(turns.median(|turn| turn.counted.accepted.p999), 1),
            Cell::Number(a_second(|turn| turn.counted.refused.requests), 0),
            Cell::Number(turns.median(|turn| turn.counted.refused.p50), 1),
            Cell::Number(turns.median(|turn| turn.counted.refused.p99), 1),
            Cell::Number(turns.median(|turn| turn.counted.refused.p999), 1),
            Cell::Number(turns.median(|turn| turn.counted.unanswered.requests as f64), 0),
            Cell::Number(turns.median(|turn| turn.counted.unanswered.p999), 1),
            Cell::Number(turns.median(|turn| turn.counted.late.p99), 1),
        ]);
    }
    let columns = [
        "subject",
        "offered/s",
        "accepted/s",
        "p50 ms",
        "p99 ms",
        "p99.9 ms",
        "refused/s",
        "refused p50 ms",
        "refused p99 ms",
        "refused p99.9 ms",
        "unanswered at the end",
        "they wait for ms",
        "sent late p99 ms",
    ];
    report.table("overload", "At twice saturation", &columns, &rows);
    Ok(())
}

/// The gateway's three ways.
const OURS: [Kind; 3] = [Kind::Receive, Kind::Rewrite, Kind::Upload];

fn series(plan: &Plan, report: &mut Report) -> Outcome<()> {
    let world = World::new(plan, plan.tls)?;
    let subjects = OURS.map(|kind| Subject::start(kind, &world, &Setup::of(plan)));
    let subjects = subjects.into_iter().collect::<Outcome<Vec<_>>>()?;
    let closed = Arrivals::Closed { connections: plan.connections };
    let mut rows = Vec::new();
    for series in [1, 10, 100, 500, 1_000, 2_000, 5_000, 10_000] {
        let plan = Plan { series, ..plan.clone() };
        warm_up(&plan, &subjects)?;
        let turns = take_turns(&plan, &subjects, |_, subject| subject.spec(&plan, closed))?;
        let mut row = vec![Cell::Number(series as f64, 0)];
        for turns in &turns {
            row.extend([Cell::Number(turns.cpu(), 0), Cell::Number(turns.cpu() * 1e3 / series as f64, 0)]);
        }
        rows.push(row);
    }
    let columns =
        ["series", "receive µs", "ns a series", "rewrite µs", "ns a series of it", "upload µs", "ns a series of that"];
    report.table("series", "CPU by series of a request", &columns, &rows);
    Ok(())
}

fn rules(plan: &Plan, report: &mut Report) -> Outcome<()> {
    let world = World::new(plan, plan.tls)?;
    let numbers = [200, 1_000, 10_000];
    let mut subjects = Vec::new();
    for kind in OURS {
        for rules in numbers {
            subjects.push(Subject::start(kind, &world, &Setup { rules, ..Setup::of(plan) })?);
        }
    }
    warm_up(plan, &subjects)?;
    let closed = Arrivals::Closed { connections: plan.connections };
    let turns = take_turns(plan, &subjects, |_, subject| subject.spec(plan, closed))?;
    let rows: Vec<_> = OURS
        .iter()
        .zip(turns.chunks(numbers.len()))
        .map(|(kind, turns)| {
            let mut row = vec![Cell::Text(kind.name().to_owned())];
            row.extend(turns.iter().map(|turns| Cell::Number(turns.cpu(), 1)));
            row.push(Cell::Number(turns[numbers.len() - 1].cpu() / turns[0].cpu(), 3));
            row
        })
        .collect();
    report.table(
        "rules",
        "CPU µs by rules of the allowlist",
        &["subject", "200", "1000", "10000", "10000 to 200"],
        &rows,
    );
    Ok(())
}

fn clusters(plan: &Plan, report: &mut Report) -> Outcome<()> {
    let world = World::new(plan, plan.tls)?;
    let numbers: [u64; 3] = if plan.test { [10, 20, 30] } else { [100, 10_000, 1_000_000] };
    let mut subjects = Vec::new();
    for clusters in numbers {
        let subject = Subject::start(Kind::Receive, &world, &Setup::of(plan))?;
        let closed = Arrivals::Closed { connections: plan.connections };
        subject.turn_of(&Spec { clusters, introduce: true, ..subject.spec(plan, closed) })?;
        subjects.push(subject);
    }
    let closed = Arrivals::Closed { connections: plan.connections };
    let turns = take_turns(plan, &subjects, |n, subject| Spec { clusters: numbers[n], ..subject.spec(plan, closed) })?;
    let rows: Vec<_> = turns
        .iter()
        .enumerate()
        .map(|(n, found)| {
            vec![
                Cell::Number(numbers[n] as f64, 0),
                Cell::Number(found.cpu(), 1),
                Cell::Number(found.cpu() / turns[0].cpu(), 3),
                Cell::Number(found.median(|turn| turn.peak) / MIB, 1),
            ]
        })
        .collect();
    report.table("clusters", "receive, by known clusters", &["clusters", "CPU µs", "to the first", "peak MiB"], &rows);
    Ok(())
}

fn memory(plan: &Plan, report: &mut Report) -> Outcome<()> {
    let connections = if plan.test { 50 } else { 10_000 };
    let mut rows = Vec::new();
    for tls in [false, true] {
        let world = World::new(plan, tls)?;
        for kind in [Kind::Bare, Kind::Receive] {
            let subject = Subject::start(kind, &world, &Setup::of(plan))?;
            let before = subject.process.resident()?;
            // One that ends as it is dropped.
            let mut load = subject.load(plan, Arrivals::ThenIdle { connections })?;
            load.line()?;
            thread::sleep(Duration::from_secs(1));
            rows.push(vec![
                Cell::Text(kind.name().to_owned()),
                Cell::Text(if tls { "TLS" } else { "plaintext" }.to_owned()),
                Cell::Number((subject.process.resident()? - before) / connections as f64 / KIB, 1),
            ]);
        }
    }
    let title = format!("{connections} idle connections that have sent one request each");
    report.table("idle", &title, &["subject", "listener", "KiB each"], &rows);

    let requests = if plan.test { 5 } else { 100 };
    let mut rows = Vec::new();
    for kind in OURS {
        for series in [500, 10_000] {
            let world = World::new(plan, plan.tls)?;
            let plan = Plan { series, ..plan.clone() };
            let subject = Subject::start(kind, &world, &Setup { slow: true, ..Setup::of(&plan) })?;
            let before = subject.process.resident()?;
            let turn = subject.turn(&plan, Arrivals::Once { connections: requests })?;
            let each = (turn.peak - before) / requests as f64;
            rows.push(vec![
                Cell::Text(kind.name().to_owned()),
                Cell::Number(series as f64, 0),
                Cell::Number(turn.counted.decoded as f64 / KIB, 0),
                Cell::Number(turn.counted.body as f64 / KIB, 0),
                Cell::Number(each / KIB, 0),
                Cell::Number(each / turn.counted.decoded as f64, 2),
            ]);
        }
    }
    let columns = ["subject", "series", "decoded KiB", "on the wire KiB", "peak KiB a request", "to decoded"];
    report.table(
        "in flight",
        &format!("{requests} requests in flight at once, of an upstream that takes its time"),
        &columns,
        &rows,
    );
    Ok(())
}

/// Two gateways of each kind under the same load, one of which has slow connections besides.
fn slow(plan: &Plan, report: &mut Report) -> Outcome<()> {
    let connections = if plan.test { 50 } else { 10_000 };
    let world = World::new(plan, false)?;
    let mut rows = Vec::new();
    for kind in OURS {
        let subjects = [
            Subject::start(kind, &world, &Setup::of(plan))?,
            Subject::start(kind, &world, &Setup { patient: true, ..Setup::of(plan) })?,
        ];
        warm_up(plan, &subjects)?;
        // One that ends as it is dropped.
        let slow = subjects[1].slow_connections(connections)?;
        // What they send would take of the processors that the quiet one is measured on.
        slow.pause()?;
        let closed = Arrivals::Closed { connections: plan.connections };
        let full = take_turns(plan, &subjects[..1], |_, subject| subject.spec(plan, closed))?;
        let open = |rate| Arrivals::Open { rate, connections: plan.open_connections };
        let third = take_turns(plan, &subjects[..1], |_, subject| subject.spec(plan, open(full[0].rate() / 3.0)))?;
        let half = saturation(&full[0], &third[0]) / 2.0;
        let [mut quiet, mut beside] = [Turns::default(), Turns::default()];
        for _ in 0..plan.rounds {
            quiet.0.push(subjects[0].turn(plan, open(half))?);
            slow.resume()?;
            beside.0.push(subjects[1].turn(plan, open(half))?);
            slow.pause()?;
        }
        let p99 = |turns: &Turns| turns.median(|turn| turn.counted.accepted.p99);
        rows.push(vec![
            Cell::Text(kind.name().to_owned()),
            Cell::Number(half, 0),
            Cell::Number(quiet.cpu(), 0),
            Cell::Number(beside.cpu(), 0),
            Cell::Number(quiet.median(|turn| turn.counted.accepted.p50), 2),
            Cell::Number(beside.median(|turn| turn.counted.accepted.p50), 2),
            Cell::Number(p99(&quiet), 2),
            Cell::Number(p99(&beside), 2),
            Cell::Number(p99(&beside) / p99(&quiet), 2),
            Cell::Number(beside.median(|turn| turn.counted.refused.requests as f64), 0),
            Cell::Number(subjects[1].descriptors()? as f64, 0),
        ]);
    }
    let columns = [
        "subject",
        "requests/s",
        "quiet CPU µs",
        "beside CPU µs",
        "quiet p50 ms",
        "beside p50 ms",
        "quiet p99 ms",
        "beside p99 ms",
        "p99 to quiet",
        "refused",
        "descriptors",
    ];
    report.table("slow", &format!("At half of saturation, beside {connections} slow connections"), &columns, &rows);
    Ok(())
}
