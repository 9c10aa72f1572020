//! Which keys are said, and what they say.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::config::policy::{
    document::{Document, Override, Tenants},
    values::ExemptFrom,
};

/// Each key that is said, as `receive.limits.series`, and its value.
pub(super) type Said = BTreeMap<String, Value>;

/// What a structure of the file says.
pub(super) fn said_in(section: &impl Serialize) -> Said {
    let mut said = Said::new();
    // What is read from YAML can be written as JSON.
    if let Ok(Value::Object(section)) = serde_json::to_value(section) {
        flatten("", section, &mut said);
    }
    said
}

fn flatten(prefix: &str, section: Map<String, Value>, said: &mut Said) {
    for (key, value) in section {
        match (key.as_str(), value) {
            ("upload" | "receive" | "limits", Value::Object(section)) => {
                flatten(&format!("{prefix}{key}."), section, said);
            }
            (_, value) => {
                said.insert(format!("{prefix}{key}"), value);
            }
        }
    }
}

/// What a document says for all.
pub(super) fn said_for_all(document: &Document) -> Said {
    let Document { upload, receive, tenants, overrides: _ } = document;
    let both = Override {
        upload: upload.clone().map(Box::new),
        receive: receive.clone().map(Box::new),
        ..Override::default()
    };
    let mut said = said_in(&both);
    if let Some(Tenants { upload, receive, .. }) = tenants {
        for (key, tenant) in [("tenants.upload", upload), ("tenants.receive", receive)] {
            said.extend(tenant.as_ref().map(|tenant| (key.to_owned(), json!(tenant))));
        }
    }
    said
}

/// What holds for whom there is no override; also where nobody says it.
pub(super) fn base(document: &Document) -> Said {
    let unlimited = json!({ "per_second": 0.0 });
    let unsaid = [
        ("upload.elide", json!([])),
        ("upload.set", json!({})),
        ("upload.require", json!({})),
        ("upload.limits.samples", json!(0)),
        ("receive.elide", json!([])),
        ("receive.set", json!({})),
        ("receive.require", json!({})),
        ("receive.limits.samples", json!(0)),
        ("receive.limits.request_rate", unlimited.clone()),
        ("receive.limits.sample_rate", unlimited),
        ("exempt", json!([])),
        ("denied", json!(false)),
        ("writes_for", json!([])),
    ];
    let mut base: Said = unsaid.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    base.extend(said_for_all(document));
    base
}

/// Whether whoever is exempt from this is not held to that key.
pub(super) fn lifts(kind: ExemptFrom, key: &str) -> bool {
    let Some((_, key)) = key.split_once('.') else { return false };
    let is_rate = matches!(key, "limits.interval" | "limits.request_rate" | "limits.sample_rate");
    match kind {
        ExemptFrom::Rates => is_rate,
        ExemptFrom::Sizes => key.starts_with("limits.") && !is_rate,
        ExemptFrom::Allowlist => key == "allowlist",
    }
}
