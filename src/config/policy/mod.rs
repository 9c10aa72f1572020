//! The policy: what flags and the policy file say together, and what that means.
//!
//! **Which word counts.** Each key by itself, whole: the override of the cluster before that of its account, before the policy file's
//! section, before the flag, before the default. Nothing is merged within a value: a list in the file stands in place of the flag's.

mod compile;
pub mod document;
mod flags;
mod live;
pub mod schema;
#[cfg(test)]
mod tests;
mod upstream;
pub mod values;
mod yaml;

use std::{fmt, io, path::PathBuf, sync::Arc};

use aws_lc_rs::digest;
use infogw_layers::policy::Policy;

use super::ConfigError;
use document::{Document, Fill as _, Receive, Upload};
pub use flags::PolicyFlags;
pub use live::{GatewayPolicy, PolicyStatus, Written};
pub use upstream::Upstream;
use values::{At, Place, Rule, Source};

/// What a policy is about, and only a restart changes.
#[derive(Debug, Clone)]
pub struct Subject {
    /// The label that carries the cluster's id in uploads.
    pub partition_label: String,
    /// The same for `/metrics/v1/receive`; another one only where no token names a cluster.
    pub receive_label: String,
    /// The flag that names it.
    pub receive_label_flag: &'static str,
    /// Where writes go.
    pub upstream: Upstream,
}

impl Subject {
    /// Writes to `upstream` of clusters that these labels name.
    pub fn new(partition_label: String, receive_label: String, upstream: Upstream) -> Self {
        let receive_label_flag =
            if receive_label == partition_label { "--partition-label" } else { "--client-info-subject-label" };
        Subject { partition_label, receive_label, receive_label_flag, upstream }
    }
}

/// Where the policy comes from.
#[derive(Debug, Clone)]
pub struct PolicySources {
    subject: Subject,
    said: flags::Said,
}

/// The policy of one moment.
#[derive(Debug)]
pub struct ReadPolicy {
    /// What the policy file says by itself.
    pub file: Document,
    /// As it is written: what holds, with nothing left to fill in.
    pub document: Document,
    /// As it is enforced.
    pub policy: Policy,
    /// Tells it from others: the same for the same document, wherever its parts come from.
    pub hash: String,
}

/// What is wrong with a policy, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyError {
    place: Place,
    message: String,
}

impl PolicyError {
    fn at(place: &Place, message: impl fmt::Display) -> Self {
        PolicyError { place: place.clone(), message: message.to_string() }
    }

    fn nowhere(message: impl fmt::Display) -> Self {
        PolicyError::at(&Place::default(), message)
    }
}

impl PolicySources {
    /// What the flags say of `subject`.
    ///
    /// # Errors
    /// The first flag that is wrong.
    pub fn new(flags: PolicyFlags, subject: Subject) -> Result<Self, ConfigError> {
        Ok(PolicySources { subject, said: flags.read()? })
    }

    /// Reads the files and puts the policy together.
    ///
    /// # Errors
    /// The first file that cannot be read, or thing that is wrong, with file, line and column; rule files without any rule.
    pub fn read(&self) -> Result<ReadPolicy, ConfigError> {
        let file = match &self.said.policy_file {
            None => Document::default(),
            Some(path) => {
                let text = read_text("--policy", path)?;
                // Some editors begin a file with this.
                let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
                yaml::read(text).map_err(|error| self.told(error))?
            }
        };
        let document = file.clone().fill(self.flags()?);
        let policy = compile::compile(&document, &self.subject).map_err(|error| self.told(error))?;
        let hash = hash(&document).map_err(|error| ConfigError(format!("the policy cannot be hashed: {error}")))?;
        Ok(ReadPolicy { file, document, policy, hash })
    }

    /// The files that it is read from.
    pub fn files(&self) -> impl Iterator<Item = &PathBuf> {
        self.said.policy_file.iter().chain(&self.said.whitelist_files)
    }

    /// The policy file.
    pub fn policy_file(&self) -> Option<&std::path::Path> {
        self.said.policy_file.as_deref()
    }

    /// What the policy is about.
    pub fn subject(&self) -> &Subject {
        &self.subject
    }

    /// Where something stands, as a reader finds it.
    pub fn place(&self, place: &Place) -> String {
        match (&place.source, &self.said.policy_file) {
            (Source::Policy, Some(path)) => format!("{}:{place}", path.display()),
            _ => place.to_string(),
        }
    }

    fn told(&self, PolicyError { place, message }: PolicyError) -> ConfigError {
        match place.source {
            Source::Default => ConfigError(message),
            _ => ConfigError(format!("{}: {message}", self.place(&place))),
        }
    }

    /// What flags say, and the files of rules that they name.
    fn flags(&self) -> Result<Document, ConfigError> {
        let mut rules = self.said.whitelist.clone();
        for path in &self.said.whitelist_files {
            let source = Source::File(Arc::from(path.as_path()));
            let text = read_text("--whitelist-file", path)?;
            for (line, rule) in (1..).zip(text.lines().map(str::trim)) {
                if !rule.is_empty() && !rule.starts_with('#') {
                    let place = Place { source: source.clone(), line, column: 0 };
                    match rule.parse() {
                        Ok(selector) => rules.push(At { value: Rule(selector), place }),
                        Err(error) => return Err(ConfigError(format!("{place}: {error}"))),
                    }
                }
            }
        }
        let mut document = self.said.document.clone();
        if let Some(flag) = self.allowlist_flags() {
            // No rules at all let everything pass: nobody who names a file means that.
            if rules.is_empty() {
                let files: Vec<_> = self.said.whitelist_files.iter().map(|path| path.display().to_string()).collect();
                let files = files.join(", ");
                return Err(ConfigError(format!("{flag}: no rule in {files}; write one, or leave out the flag")));
            }
            let allowlist = Some(At::flag(flag, rules));
            document.upload = Some(Upload { allowlist: allowlist.clone(), ..document.upload.unwrap_or_default() });
            document.receive = Some(Receive { allowlist, ..document.receive.unwrap_or_default() });
        }
        Ok(document)
    }

    /// Where the flags' selectors come from.
    fn allowlist_flags(&self) -> Option<&'static str> {
        match (self.said.whitelist.is_empty(), self.said.whitelist_files.is_empty()) {
            (true, true) => None,
            (false, true) => Some("--whitelist"),
            (true, false) => Some("--whitelist-file"),
            (false, false) => Some("--whitelist and --whitelist-file"),
        }
    }
}

impl ReadPolicy {
    /// Overrides in it, of accounts and clusters, tenants among them.
    pub fn overrides(&self) -> usize {
        self.policy.exceptions()
    }

    /// Rules in the allowlists of both endpoints; without any, all series pass.
    pub fn rules(&self) -> [usize; 2] {
        let upload = self.document.upload.as_ref().and_then(|section| section.allowlist.as_ref());
        let receive = self.document.receive.as_ref().and_then(|section| section.allowlist.as_ref());
        [upload, receive].map(|rules| rules.map_or(0, |rules| rules.value.len()))
    }
}

/// SHA-256 of the canonical form, its first 16 digits.
fn hash(document: &Document) -> Result<String, serde_json::Error> {
    struct Hashing(digest::Context);

    impl io::Write for Hashing {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.update(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    let mut out = io::BufWriter::new(Hashing(digest::Context::new(&digest::SHA256)));
    serde_json::to_writer(&mut out, document)?;
    let Hashing(context) = out.into_inner().map_err(|error| serde_json::Error::io(error.into_error()))?;
    let digest = context.finish();
    Ok(digest.as_ref().iter().take(8).map(|byte| format!("{byte:02x}")).collect())
}

fn read_text(flag: &str, path: &std::path::Path) -> Result<String, ConfigError> {
    let shown = path.display();
    let bytes = std::fs::read(path).map_err(|error| ConfigError(format!("{flag}: {shown}: {error}")))?;
    String::from_utf8(bytes).map_err(|error| {
        let valid = error.as_bytes().get(..error.utf8_error().valid_up_to()).unwrap_or_default();
        let line = valid.split(|byte| *byte == b'\n').next_back().unwrap_or_default();
        let (lines, column) =
            (valid.iter().filter(|byte| **byte == b'\n').count(), String::from_utf8_lossy(line).chars().count());
        ConfigError(format!("{shown}:{}:{}: this is not UTF-8", lines + 1, column + 1))
    })
}
