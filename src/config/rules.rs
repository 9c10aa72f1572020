//! The label rules: from flags and files, and in force.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use arc_swap::ArcSwap;
use infogw_layers::{
    authorize::Identity,
    enforce::{
        ClusterLabelCheck, LabelPolicy, LivePolicy, OnOffence,
        selector::{Selector, SelectorSet},
    },
};
use tokio::task::JoinSet;

use super::{ConfigError, Delegations};
use crate::watch::Followed;

/// Where the label rules come from.
#[derive(Debug, Clone)]
pub struct RuleSources {
    /// The label that carries the cluster's id in uploads.
    pub(super) partition_label: String,
    /// The same for `/metrics/v1/receive`; another one only where no token names a cluster.
    pub(super) receive_label: String,
    pub(super) whitelist: Vec<Selector>,
    pub(super) whitelist_files: Vec<PathBuf>,
    pub(super) upload: Relabel,
    pub(super) receive: Relabel,
    pub(super) check: ClusterLabelCheck,
    pub(super) delegations_file: Option<PathBuf>,
}

/// Labels to set and to remove.
#[derive(Debug, Clone)]
pub(super) struct Relabel {
    pub(super) set: Vec<(String, String)>,
    pub(super) elide: Vec<String>,
}

/// The label rules of one moment.
#[derive(Debug)]
pub struct Rules {
    /// For `/upload`.
    pub upload: LabelPolicy,
    /// For `/metrics/v1/receive`.
    pub receive: LabelPolicy,
    /// Clusters that may write for others.
    pub delegations: Delegations,
    /// Selectors in the allowlist.
    pub selectors: usize,
}

impl RuleSources {
    /// Reads the files and puts the rules together.
    ///
    /// # Errors
    /// The first file that cannot be read or rule that does not parse, with file and line; files without any rule.
    pub fn read(&self) -> Result<Rules, ConfigError> {
        let mut selectors = self.whitelist.clone();
        for path in &self.whitelist_files {
            let shown = path.display();
            let text = read_text("--whitelist-file", path)?;
            for (index, line) in text.lines().enumerate().map(|(index, line)| (index, line.trim())) {
                if !line.is_empty() && !line.starts_with('#') {
                    let selector = line.parse();
                    selectors.push(selector.map_err(|error| ConfigError(format!("{shown}:{}: {error}", index + 1)))?);
                }
            }
        }
        // No rules at all let everything pass: nobody who names a file means that.
        if selectors.is_empty() && !self.whitelist_files.is_empty() {
            let files: Vec<_> = self.whitelist_files.iter().map(|path| path.display().to_string()).collect();
            let files = files.join(", ");
            return Err(ConfigError(format!("--whitelist-file: no rule in {files}; write one, or leave out the flag")));
        }
        let allowlist = SelectorSet::new(selectors);
        let allowlist = allowlist.map_err(|error| ConfigError(format!("{}: {error}", self.allowlist_flags())))?;
        let allowlist = Arc::new(allowlist);
        let policy = |cluster_label: &str, relabel: &Relabel| {
            LabelPolicy::new(cluster_label)
                .allowlist(Arc::clone(&allowlist))
                .set(relabel.set.iter().map(|(k, v)| (k.as_str(), v.as_str())))
                .elide(relabel.elide.iter().map(String::as_str))
        };
        let delegations = match &self.delegations_file {
            None => Delegations::default(),
            Some(path) => {
                let text = read_text("--cluster-delegations-file", path)?;
                text.parse().map_err(|error| ConfigError(format!("{}:{error}", path.display())))?
            }
        };
        Ok(Rules {
            upload: policy(&self.partition_label, &self.upload).on_offence(OnOffence::RefuseRequest),
            receive: policy(&self.receive_label, &self.receive).on_offence(OnOffence::RefuseSeries).check(self.check),
            delegations,
            selectors: allowlist.len(),
        })
    }

    /// Where the selectors come from.
    fn allowlist_flags(&self) -> &'static str {
        match (self.whitelist.is_empty(), self.whitelist_files.is_empty()) {
            (_, true) => "--whitelist",
            (true, false) => "--whitelist-file",
            (false, false) => "--whitelist and --whitelist-file",
        }
    }
}

/// The rules in force. SIGHUP replaces them; a request ends under those it began with. Clones share them.
#[derive(Debug, Clone)]
pub struct LiveRules {
    /// For `/upload`.
    pub upload: LivePolicy,
    /// For `/metrics/v1/receive`.
    pub receive: LivePolicy,
    delegations: Arc<ArcSwap<Delegations>>,
    selectors: Arc<AtomicUsize>,
    /// No files: the rules are read when somebody asks, and only then.
    asked: Followed,
}

impl LiveRules {
    /// Starts with `rules`.
    pub fn new(rules: Rules) -> Self {
        LiveRules {
            upload: rules.upload.into(),
            receive: rules.receive.into(),
            delegations: Arc::new(ArcSwap::from_pointee(rules.delegations)),
            selectors: Arc::new(rules.selectors.into()),
            asked: Followed::new([] as [PathBuf; 0]),
        }
    }

    /// Reads `sources` whenever [asked](Self::ask_to_reload), in one of `tasks`, and puts what they say in force; on a fault the old
    /// rules stay.
    pub fn follow(&self, tasks: &mut JoinSet<()>, sources: &RuleSources) {
        let (sources, rules) = (sources.clone(), self.clone());
        self.asked.follow(
            tasks,
            move || sources.read(),
            move |read| match read {
                Ok(read) => {
                    rules.replace(read);
                    tracing::info!(selectors = rules.selectors(), "reloaded the label rules");
                }
                Err(error) => tracing::error!(%error, "the label rules were not reloaded; the old ones stay"),
            },
        );
    }

    /// Has the rules read again by whoever [follows](Self::follow) them.
    pub fn ask_to_reload(&self) {
        self.asked.ask();
    }

    /// Puts `rules` in force.
    pub fn replace(&self, rules: Rules) {
        self.upload.replace(rules.upload);
        self.receive.replace(rules.receive);
        self.delegations.store(Arc::new(rules.delegations));
        self.selectors.store(rules.selectors, Ordering::Relaxed);
    }

    /// Selectors in the allowlist. With none, every series passes.
    pub fn selectors(&self) -> usize {
        self.selectors.load(Ordering::Relaxed)
    }

    /// The identity with what it may write besides its own series.
    pub fn delegate(&self, identity: Arc<Identity>) -> Arc<Identity> {
        self.delegations.load().apply(identity)
    }
}

fn read_text(flag: &str, path: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(path).map_err(|error| ConfigError(format!("{flag}: {}: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use crate::config::{Config, Flags};

    #[test]
    fn the_flags_that_selectors_come_from_are_named() {
        let named = |whitelist: &[&str], files: &[&str]| {
            let owned = |values: &[&str]| values.iter().map(|&value| value.to_owned()).collect();
            let flags = Flags { whitelist: owned(whitelist), whitelist_file: owned(files), ..Flags::default() };
            let url = Some("http://localhost/".to_owned());
            let config = Config::new(Flags { authorize: url.clone(), forward_url: url, ..flags });
            config.map(|config| config.rule_sources.allowlist_flags()).map_err(|error| error.to_string())
        };
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_str().unwrap();
        assert!(named(&[], &[path]).unwrap_err().contains(&format!("no rule in {path}; ")));
        assert_eq!(named(&["up"], &[path]).unwrap(), "--whitelist and --whitelist-file");
        std::fs::write(path, "up\n").unwrap();
        assert_eq!(named(&[], &[path]).unwrap(), "--whitelist-file");
        assert_eq!(named(&["up"], &[]).unwrap(), "--whitelist");
    }
}
