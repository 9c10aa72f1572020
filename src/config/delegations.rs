//! Which clusters may write for others: `cluster: [cluster, ...]`, a line each; `cluster: [*]` for any other.

use std::{
    collections::{HashMap, HashSet},
    str::FromStr,
    sync::Arc,
};

use infogw_layers::{
    authorize::{ClusterId, Identity, Writes},
    rejection::excerpt,
};

/// Clusters that write for others, too: management clusters for the hosted ones they report for, trusted feeds for any.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Delegations(HashMap<Box<str>, Writes>);

impl Delegations {
    /// The identity with what it may write besides its own series.
    pub fn apply(&self, identity: Arc<Identity>) -> Arc<Identity> {
        match self.0.get(identity.cluster.as_str()) {
            None => identity,
            Some(writes) => Arc::new(Identity { writes: writes.clone(), ..Identity::clone(&identity) }),
        }
    }
}

impl FromStr for Delegations {
    type Err = String;

    /// The error is `line: what is wrong`.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut delegations = HashMap::new();
        // Some editors begin a file with this.
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        for (index, line) in text.lines().enumerate() {
            let line = line.split_once('#').map_or(line, |(line, _)| line).trim();
            if line.is_empty() {
                continue;
            }
            let read =
                delegation(line).and_then(|(cluster, writes)| match delegations.insert(cluster.clone(), writes) {
                    None => Ok(()),
                    Some(_) => Err(format!("`{cluster}` stands there twice")),
                });
            read.map_err(|error| format!("{}: {error}", index + 1))?;
        }
        Ok(Delegations(delegations))
    }
}

/// `cluster: [cluster, ...]`. It is YAML, so that it can be moved into YAML.
fn delegation(line: &str) -> Result<(Box<str>, Writes), String> {
    let brackets = |list: &str| Some(list.trim().strip_prefix('[')?.strip_suffix(']')?.trim().to_owned());
    let (cluster, list) = line
        .split_once(':')
        .and_then(|(cluster, list)| Some((cluster, brackets(list)?)))
        .ok_or("this is not `cluster: [cluster, ...]`")?;
    let cluster = cluster_id(cluster)?;
    if &*cluster == ANY {
        return Err("`*` stands for any cluster between the brackets, alone, and nowhere else".to_owned());
    }
    let mut others = HashSet::new();
    if !list.is_empty() {
        // A last comma is no matter.
        for other in list.strip_suffix(',').unwrap_or(&list).split(',') {
            others.insert(cluster_id(other)?);
        }
    }
    match (others.contains(ANY), others.len()) {
        (false, _) => Ok((cluster, Writes::Also(Arc::new(others)))),
        (true, 1) => Ok((cluster, Writes::Any)),
        (true, _) => Err("`*` is any cluster, so nothing else stands between the brackets".to_owned()),
    }
}

/// What stands for any cluster. `"*"` does, too: YAML reads nothing else as this.
const ANY: &str = "*";

fn cluster_id(text: &str) -> Result<Box<str>, String> {
    let text = text.trim();
    let unquoted = ['"', '\''].iter().find_map(|quote| text.strip_prefix(*quote)?.strip_suffix(*quote)).unwrap_or(text);
    let unfit = |c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '[' | ']' | '{' | '}' | ',');
    match ClusterId::new(unquoted) {
        Ok(id) if !unquoted.contains(unfit) && (unquoted == ANY || !unquoted.contains('*')) => Ok(id.as_str().into()),
        _ => Err(format!("`{}` is no cluster id", excerpt(text))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_line_a_cluster() {
        let text = "\u{feff}# management clusters\r\nm1: [h1, \"h2\", 'h3',]\n\nm2: []  # none yet\n feed : [ * ]\n\"feed2\": [\"*\"]";
        let delegations: Delegations = text.parse().unwrap();
        let of = |cluster: &str| delegations.apply(Arc::new(Identity::of(ClusterId::new(cluster).unwrap())));
        let m1 = of("m1");
        for (cluster, allowed) in [("m1", true), ("h1", true), ("h2", true), ("h3", true), ("h4", false), ("*", false)]
        {
            assert_eq!(m1.writes.allows(&m1.cluster, cluster), allowed, "{cluster}");
        }
        let m2 = of("m2");
        assert!(m2.writes.allows(&m2.cluster, "m2") && !m2.writes.allows(&m2.cluster, "h1"));
        assert_eq!(of("h1").writes, Writes::Own);
        for feed in ["feed", "feed2"] {
            assert_eq!(of(feed).writes, Writes::Any);
        }
    }

    #[test]
    fn odd_lines_are_refused_by_their_number() {
        let long = format!("m: [{}]", "h".repeat(257));
        for (text, error) in [
            ("m1 [h1]", "1: this is not"),
            ("\nm1: h1", "2: this is not"),
            ("m: [a]\n- b", "2: this is not"),
            ("m: [a", "1: this is not"),
            ("m: [a] x", "1: this is not"),
            ("m: *", "1: this is not"),
            ("m:\n- a", "1: this is not"),
            ("m: [a]\nm: [b]", "2: `m` stands there twice"),
            ("m: [a]\n\"m\": [b]", "2: `m` stands there twice"),
            (": [a]", "1: `` is no cluster id"),
            ("m: [a,,b]", "1: `` is no cluster id"),
            ("m: [,]", "1: `` is no cluster id"),
            ("m: [\"a']", "1: `\"a'` is no cluster id"),
            ("m: [[a]]", "1: `[a]` is no cluster id"),
            ("m: [a b]", "1: `a b` is no cluster id"),
            ("m: [a: b]", "1: `a: b` is no cluster id"),
            ("m: [a*]", "1: `a*` is no cluster id"),
            ("m: [\"\"]", "1: `\"\"` is no cluster id"),
            ("m: [a\u{0}b]", "1: `a\u{fffd}b` is no cluster id"),
            (&long, "1: `hhhh"),
            ("m: [*, a]", "1: `*` is any cluster"),
            ("*: [a]", "1: `*` stands for any cluster between the brackets"),
        ] {
            let found = text.parse::<Delegations>().unwrap_err();
            assert!(found.starts_with(error) && found.len() < 200, "{text:?}: {found}");
        }
    }
}
