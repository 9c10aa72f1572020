use std::{collections::HashSet, fmt, sync::Arc, time::SystemTime};

/// A cluster's id: 1 to 256 bytes, no control characters. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClusterId(Arc<str>);

/// The id is empty, longer than 256 bytes, or holds control characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a cluster id is 1 to 256 bytes without control characters")]
pub struct InvalidClusterId;

impl ClusterId {
    /// `id` as a cluster id.
    ///
    /// # Errors
    /// [`InvalidClusterId`] if it is none.
    pub fn new(id: &str) -> Result<Self, InvalidClusterId> {
        if id.is_empty() || id.len() > 256 || id.chars().any(char::is_control) {
            return Err(InvalidClusterId);
        }
        Ok(ClusterId(id.into()))
    }

    /// The id.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Who sent a request, and what that one may write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The cluster that was authorized.
    pub cluster: ClusterId,
    /// The account it belongs to, where the authorizer names one.
    pub account: Option<Arc<str>>,
    /// Labels that every series must carry with these values, besides the cluster's own.
    pub labels: Vec<(Box<str>, Box<str>)>,
    /// Whose series it may write.
    pub writes: Writes,
    /// Until when this holds; after that the authorizer is asked anew.
    pub expires_at: Option<SystemTime>,
}

impl Identity {
    /// `cluster`, which writes its own series and nothing else.
    pub fn of(cluster: ClusterId) -> Self {
        Identity { cluster, account: None, labels: Vec::new(), writes: Writes::Own, expires_at: None }
    }
}

/// Whose series an identity may write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Writes {
    /// Its own.
    Own,
    /// Its own and those of these clusters: a management cluster that reports for hosted ones.
    Also(Arc<HashSet<Box<str>>>),
    /// Any cluster's: a trusted feed.
    Any,
}

impl Writes {
    /// Whether `own` may write series of `cluster`.
    pub fn allows(&self, own: &ClusterId, cluster: &str) -> bool {
        own.as_str() == cluster
            || match self {
                Writes::Own => false,
                Writes::Also(clusters) => clusters.contains(cluster),
                Writes::Any => true,
            }
    }
}
