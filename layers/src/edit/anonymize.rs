//! Label values that are not to be known where they are pushed to.

use std::fmt;

use aws_lc_rs::digest::{Context, SHA256};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

use super::Edit;
use crate::payload::{Keep, LabelSet};

/// Bytes of the digest that a value becomes: 12 characters. telemeter holds that enough for a million values.
const KEPT: usize = 9;

/// Replaces values of labels by their salted digest, as telemeter-client's `--anonymize-labels` does: the first nine bytes of the SHA-256
/// of salt and value, in URL-safe base64. The same value becomes the same digest as long as the salt stays.
#[derive(Clone)]
pub struct Anonymize {
    labels: Box<[Box<str>]>,
    /// Has read the salt.
    salted: Context,
}

/// There is no salt: whoever knows the values can tell them by their digests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the salt is empty; give one that cannot be guessed, and keep it")]
pub struct EmptySalt;

impl Anonymize {
    /// Replaces the values of `labels`. A metric's name is none of them.
    ///
    /// # Errors
    /// [`EmptySalt`], if there is no salt.
    pub fn new<N: Into<Box<str>>>(
        salt: impl AsRef<[u8]>,
        labels: impl IntoIterator<Item = N>,
    ) -> Result<Self, EmptySalt> {
        let salt = salt.as_ref();
        if salt.is_empty() {
            return Err(EmptySalt);
        }
        let mut salted = Context::new(&SHA256);
        salted.update(salt);
        let mut labels: Vec<Box<str>> = labels.into_iter().map(Into::into).collect();
        labels.retain(|name| **name != *"__name__");
        Ok(Anonymize { labels: labels.into(), salted })
    }
}

impl fmt::Debug for Anonymize {
    /// Without the salt.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Anonymize").field("labels", &self.labels).finish_non_exhaustive()
    }
}

impl Edit for Anonymize {
    fn edit(&self, labels: &mut LabelSet<'_>) -> Keep {
        for name in &self.labels {
            let value = labels.bytes(name);
            if value.is_empty() {
                continue;
            }
            let mut digest = self.salted.clone();
            digest.update(value);
            let digest = digest.finish();
            let mut text = [0; KEPT / 3 * 4];
            let kept = digest.as_ref().get(..KEPT).unwrap_or_default();
            let text = match URL_SAFE_NO_PAD.encode_slice(kept, &mut text) {
                Ok(len) => text.get(..len).unwrap_or_default(),
                // Four characters for each three bytes.
                Err(_) => &[],
            };
            labels.set(name, std::str::from_utf8(text).unwrap_or_default());
        }
        Keep::Yes
    }
}
