//! A policy file's text.

use serde_saphyr::{DuplicateKeyPolicy, Error, MergeKeyPolicy, SnippetMode, UserMessageFormatter};

use super::{
    PolicyError,
    document::Document,
    values::{Place, Source},
};

/// Reads a policy file's text.
///
/// # Errors
/// The first thing that is wrong, with its line and column.
pub(super) fn read(text: &str) -> Result<Document, PolicyError> {
    let options = serde_saphyr::options! {
        // Whoever writes policies may write large ones, and write `*tier` a million times.
        budget: None,
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: 1_000_000_000,
            max_alias_expansions_per_anchor: usize::MAX,
        },
    };
    // Most files are right and merge nothing, so nobody need remember all their keys to merge them, or to tell where one stands
    // twice: that it does is seen by each type that has keys. What cannot be read so is read with care.
    let mut quick = options.clone();
    (quick.duplicate_keys, quick.merge_keys) = (DuplicateKeyPolicy::PassThrough, MergeKeyPolicy::Error);
    if let Ok(Some(document)) = serde_saphyr::from_str_with_options(text, quick) {
        return Ok(document);
    }
    match serde_saphyr::from_str_with_options::<Option<Document>>(text, options) {
        Ok(Some(document)) => Ok(document),
        // A file that is empty is one that somebody is writing, or forgot to.
        Ok(None) => {
            let place = Place { source: Source::Policy, line: 1, column: 1 };
            Err(PolicyError {
                place,
                message: "the policy file is empty; write `{}` for one that says nothing".to_owned(),
            })
        }
        Err(error) => Err(told(&error)),
    }
}

fn told(error: &Error) -> PolicyError {
    // What is not known to be elsewhere is at the beginning.
    let (line, column) = error.location().map_or((1, 1), |location| (location.line(), location.column()));
    let whole = error.render_with_options(serde_saphyr::render_options! {
        formatter: &UserMessageFormatter,
        snippets: SnippetMode::Off,
    });
    let suffix = format!(" at line {line}, column {column}");
    let message = whole.strip_suffix(&suffix).unwrap_or(&whole).replace(char::is_control, " ");
    PolicyError { place: Place { source: Source::Policy, line, column }, message }
}
