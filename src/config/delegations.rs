//! Which clusters may write for others: `cluster: [cluster, ...]`, a line each.

use std::{
    collections::{HashMap, HashSet},
    str::FromStr,
    sync::Arc,
};

use infogw_layers::authorize::{ClusterId, Identity, Writes};

/// Management clusters, each with the hosted clusters that it reports for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Delegations(HashMap<Box<str>, Arc<HashSet<Box<str>>>>);

impl Delegations {
    /// The identity with what it may write besides its own series.
    pub fn apply(&self, identity: Arc<Identity>) -> Arc<Identity> {
        match self.0.get(identity.cluster.as_str()) {
            None => identity,
            Some(hosted) => {
                Arc::new(Identity { writes: Writes::Also(Arc::clone(hosted)), ..Identity::clone(&identity) })
            }
        }
    }
}

impl FromStr for Delegations {
    type Err = String;

    /// The error is `line: what is wrong`.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut delegations = HashMap::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.split_once('#').map_or(line, |(line, _)| line).trim();
            if line.is_empty() {
                continue;
            }
            let (cluster, hosted) =
                delegation(line).ok_or_else(|| format!("{}: this is not `cluster: [cluster, ...]`", index + 1))?;
            if delegations.insert(cluster.clone(), Arc::new(hosted)).is_some() {
                return Err(format!("{}: `{cluster}` stands there twice", index + 1));
            }
        }
        Ok(Delegations(delegations))
    }
}

fn delegation(line: &str) -> Option<(Box<str>, HashSet<Box<str>>)> {
    let (cluster, hosted) = line.split_once(':')?;
    let hosted = hosted.trim().strip_prefix('[')?.strip_suffix(']')?;
    let hosted = hosted.split(',').filter(|id| !id.trim().is_empty()).map(cluster_id).collect::<Option<_>>()?;
    Some((cluster_id(cluster)?, hosted))
}

fn cluster_id(id: &str) -> Option<Box<str>> {
    let id = id.trim().trim_matches(['"', '\'']);
    ClusterId::new(id).ok().map(|id| id.as_str().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_line_a_cluster() {
        let text = "# management clusters\nm1: [h1, \"h2\"]\n\nm2: []  # none yet\n";
        let delegations: Delegations = text.parse().unwrap();
        let m1 = delegations.apply(Arc::new(Identity::of(ClusterId::new("m1").unwrap())));
        assert!(m1.writes.allows(&m1.cluster, "h2") && m1.writes.allows(&m1.cluster, "m1"));
        assert!(!m1.writes.allows(&m1.cluster, "h3"));
        let other = delegations.apply(Arc::new(Identity::of(ClusterId::new("h1").unwrap())));
        assert_eq!(other.writes, Writes::Own);

        for (text, error) in
            [("m1 [h1]", "1: this is not"), ("\nm1: h1", "2: this is not"), ("m: [a]\nm: [b]", "2: `m` stands")]
        {
            let found = text.parse::<Delegations>().unwrap_err();
            assert!(found.starts_with(error), "{found}");
        }
    }
}
