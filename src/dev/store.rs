//! What the receive endpoint got, in bounded memory.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::{self, Write as _},
    hash::Hash,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use super::telemetry::STALE;

/// Most clusters that are kept, most series of each, and most bytes of a series' or cluster's name. Room is made by forgetting what
/// got nothing for the longest time. At most 16 MiB in all.
const CLUSTERS: usize = 32;
const SERIES: usize = 256;
pub(super) const LONGEST_NAME: usize = 2048;
/// Most series of each cluster on the page of all clusters.
const SHOWN: usize = 10;

/// The series by cluster. Shared by all connections.
#[derive(Debug, Default)]
pub(super) struct Store(Mutex<Kept>);

/// A series as it arrived.
#[derive(Debug)]
pub(super) struct Arrived {
    /// The value of its cluster label; empty without one.
    pub(super) cluster: String,
    /// Name and labels as PromQL has them.
    pub(super) series: String,
    /// Its last sample, unless it has none.
    pub(super) latest: Option<Latest>,
    pub(super) samples: u64,
    /// Decoded.
    pub(super) bytes: u64,
}

/// A sample's value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Latest {
    Number(f64),
    Histogram { count: f64, sum: f64 },
}

impl fmt::Display for Latest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Latest::Number(number) | Latest::Histogram { sum: number, .. } if number.to_bits() == STALE => {
                f.pad("stale")
            }
            Latest::Number(number) => f.pad(&number.to_string()),
            Latest::Histogram { count, sum } => f.pad(&format!("count {count} sum {sum}")),
        }
    }
}

#[derive(Debug, Default)]
struct Kept {
    clusters: HashMap<String, Cluster>,
    totals: Totals,
    passed: Passed,
}

#[derive(Debug)]
struct Cluster {
    series: HashMap<String, Line>,
    tenant: String,
    samples: u64,
    bytes: u64,
    at: Instant,
}

/// One series.
#[derive(Debug)]
struct Line {
    latest: Option<Latest>,
    samples: u64,
    at: Instant,
}

#[derive(Debug, Default)]
struct Totals {
    requests: u64,
    samples: u64,
    bytes: u64,
}

/// What arrived since somebody last took it.
#[derive(Debug, Default)]
pub(super) struct Passed {
    /// Samples by tenant and cluster.
    pub(super) samples: BTreeMap<(String, String), u64>,
    /// On the wire.
    pub(super) bytes: u64,
}

impl Store {
    /// Keeps what a request of `bytes` on the wire brought.
    pub(super) fn keep(&self, tenant: &str, bytes: u64, series: Vec<Arrived>) {
        let now = Instant::now();
        let mut kept = self.lock();
        kept.totals.requests += 1;
        kept.totals.bytes += bytes;
        kept.passed.bytes += bytes;
        for arrived in series {
            kept.add(tenant, arrived, now);
        }
    }

    /// What arrived since this was last called.
    pub(super) fn take_passed(&self) -> Passed {
        std::mem::take(&mut self.lock().passed)
    }

    /// All clusters, each with the series that got samples last.
    pub(super) fn overview(&self) -> String {
        let kept = self.lock();
        let Totals { requests, samples, bytes } = kept.totals;
        let mut page = format!(
            "{} clusters; {requests} requests brought {samples} samples in {bytes} bytes on the wire\n",
            kept.clusters.len()
        );
        let mut clusters: Vec<_> = kept.clusters.iter().collect();
        clusters.sort_unstable_by_key(|(id, _)| *id);
        for (id, cluster) in clusters {
            page.push('\n');
            cluster.show(id, SHOWN, &mut page);
            if cluster.series.len() > SHOWN {
                let path: String = form_urlencoded::byte_serialize(id.as_bytes()).collect();
                let _ = writeln!(page, "  {} more at /clusters/{path}", cluster.series.len() - SHOWN);
            }
        }
        page
    }

    /// All series of one cluster, if it is known. Its id is spelt as [`Self::overview`] spells it in paths.
    pub(super) fn cluster(&self, path: &str) -> Option<String> {
        let kept = self.lock();
        let spelt = |id: &str| form_urlencoded::byte_serialize(id.as_bytes()).collect::<String>() == path;
        let (id, cluster) = kept.clusters.iter().find(|(id, _)| spelt(id))?;
        let mut page = String::new();
        cluster.show(id, usize::MAX, &mut page);
        Some(page)
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn add(&mut self, tenant: &str, arrived: Arrived, now: Instant) {
        let Arrived { cluster: id, series, latest, samples, bytes } = arrived;
        self.totals.samples += samples;
        if id.len() > LONGEST_NAME {
            return;
        }
        let passed = (tenant.to_owned(), id.clone());
        if self.passed.samples.len() < 2 * CLUSTERS || self.passed.samples.contains_key(&passed) {
            *self.passed.samples.entry(passed).or_default() += samples;
        }
        if !self.clusters.contains_key(&id) {
            make_room(&mut self.clusters, CLUSTERS, |cluster| cluster.at);
        }
        let new = || Cluster { series: HashMap::new(), tenant: String::new(), samples: 0, bytes: 0, at: now };
        let cluster = self.clusters.entry(id).or_insert_with(new);
        tenant.clone_into(&mut cluster.tenant);
        cluster.samples += samples;
        cluster.bytes += bytes;
        cluster.at = now;
        if series.len() > LONGEST_NAME {
            return;
        }
        if !cluster.series.contains_key(&series) {
            make_room(&mut cluster.series, SERIES, |series| series.at);
        }
        let kept = cluster.series.entry(series).or_insert(Line { latest: None, samples: 0, at: now });
        kept.latest = latest.or(kept.latest);
        kept.samples += samples;
        kept.at = now;
    }
}

impl Cluster {
    fn show(&self, id: &str, most: usize, page: &mut String) {
        let Cluster { series, tenant, samples, bytes, at } = self;
        // Writing to a String cannot fail. Names are escaped: whoever sends them must not draw on a terminal.
        let _ = writeln!(
            page,
            "{}  tenant {}  {} series  {samples} samples  {bytes} bytes decoded  {} ago",
            id.escape_debug(),
            tenant.escape_debug(),
            series.len(),
            age(*at),
        );
        let mut series: Vec<_> = series.iter().collect();
        series.sort_unstable_by(|(a, x), (b, y)| y.at.cmp(&x.at).then_with(|| a.cmp(b)));
        for (name, Line { latest, samples, at }) in series.into_iter().take(most) {
            let latest = latest.map_or_else(|| "-".to_owned(), |latest| latest.to_string());
            let _ = writeln!(page, "  {latest:>20}  {:>7} ago  {samples:>6} samples  {name}", age(*at));
        }
    }
}

fn age(at: Instant) -> String {
    format!("{:.1}s", at.elapsed().as_secs_f64())
}

/// Forgets the entry that is oldest by `at`, if there are `most` already.
fn make_room<K: Clone + Eq + Hash, V>(map: &mut HashMap<K, V>, most: usize, at: impl Fn(&V) -> Instant) {
    if map.len() >= most
        && let Some(oldest) = map.iter().min_by_key(|(_, value)| at(value)).map(|(key, _)| key.clone())
    {
        map.remove(&oldest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrived(cluster: &str, series: &str, value: f64) -> Arrived {
        Arrived {
            cluster: cluster.to_owned(),
            series: series.to_owned(),
            latest: Some(Latest::Number(value)),
            samples: 1,
            bytes: 100,
        }
    }

    #[test]
    fn it_shows_the_latest_value_of_each_series() {
        let store = Store::default();
        store.keep("t", 70, vec![arrived("c 1", "up", 1.0), arrived("c 1", "down", 5.0)]);
        store.keep("t", 30, vec![arrived("c 1", "up", 0.5), arrived("c 1", "down", f64::from_bits(STALE))]);
        assert!(store.overview().starts_with("1 clusters; 2 requests brought 4 samples in 100 bytes"));
        let page = store.cluster("c+1").unwrap();
        assert!(page.starts_with("c 1  tenant t  2 series  4 samples  400 bytes decoded"), "{page}");
        let fields: Vec<Vec<_>> = page.lines().skip(1).map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(fields[0][0], "stale");
        assert_eq!((fields[1][0], fields[1][3], fields[1][5]), ("0.5", "2", "up"));
        assert!(store.cluster("c1").is_none());
        assert_eq!(store.take_passed().samples[&("t".to_owned(), "c 1".to_owned())], 4);
        assert!(store.take_passed().samples.is_empty());
    }

    #[test]
    fn its_memory_is_bounded_and_the_latest_stays() {
        let store = Store::default();
        for cluster in 0..CLUSTERS * 3 {
            store.keep("t", 1, vec![arrived(&cluster.to_string(), "up", 1.0)]);
        }
        let long = "x".repeat(LONGEST_NAME + 1);
        store.keep("t", 1, vec![arrived(&long, "up", 1.0), arrived("c", &long, 1.0)]);
        for series in 0..SERIES * 3 {
            store.keep("t", 1, vec![arrived("c", &series.to_string(), 1.0)]);
        }
        let kept = store.lock();
        assert_eq!(kept.clusters.len(), CLUSTERS);
        assert_eq!(kept.clusters["c"].series.len(), SERIES);
        assert!(kept.clusters["c"].series.contains_key(&(SERIES * 3 - 1).to_string()));
        assert!(kept.passed.samples.len() <= 2 * CLUSTERS);
        assert!(!kept.clusters.contains_key(&long) && !kept.clusters["c"].series.contains_key(&long));
    }
}
