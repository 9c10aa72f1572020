//! Which flag says what which key of the policy file says.

use crate::config::{PolicyFlags, RateFlags};

/// Each flag that has keys in the file, whether it is given, and the keys.
pub(super) fn flags_and_keys(flags: &PolicyFlags) -> Vec<(&'static str, bool, &'static [&'static str])> {
    let PolicyFlags {
        policy: _,
        whitelist,
        whitelist_file,
        label,
        elide_label,
        receive_label,
        receive_elide_label,
        required_label,
        cluster_label_check,
        tenant_id,
        receive_tenant_id,
        limit_bytes,
        limit_receive_bytes,
        limit_receive_decoded_bytes,
        limit_series,
        limit_labels,
        limit_label_name_bytes,
        limit_label_value_bytes,
        limit_receive_label_name_bytes,
        limit_receive_label_value_bytes,
        rates,
    } = flags;
    let RateFlags {
        ratelimit,
        limit_receive_requests_per_second,
        limit_receive_requests_burst,
        limit_receive_samples_per_second,
        limit_receive_samples_burst,
    } = rates;
    let one = |value: &Option<String>| value.as_ref().is_some_and(|value| !value.is_empty());
    let any = |values: &[String]| values.iter().any(|value| !value.is_empty());
    vec![
        ("--whitelist", any(whitelist), &["upload.allowlist", "receive.allowlist"]),
        ("--whitelist-file", any(whitelist_file), &["upload.allowlist", "receive.allowlist"]),
        ("--label", any(label), &["upload.set"]),
        ("--elide-label", any(elide_label), &["upload.elide"]),
        ("--receive-label", any(receive_label), &["receive.set"]),
        ("--receive-elide-label", any(receive_elide_label), &["receive.elide"]),
        ("--required-label", any(required_label), &["upload.require"]),
        ("--cluster-label-check", one(cluster_label_check), &["receive.cluster_label_check"]),
        ("--tenant-id", one(tenant_id), &["tenants.upload"]),
        ("--receive-tenant-id", one(receive_tenant_id), &["tenants.receive"]),
        ("--limit-bytes", one(limit_bytes), &["upload.limits.decoded_bytes"]),
        ("--limit-receive-bytes", one(limit_receive_bytes), &["receive.limits.body_bytes"]),
        ("--limit-receive-decoded-bytes", one(limit_receive_decoded_bytes), &["receive.limits.decoded_bytes"]),
        ("--limit-series", one(limit_series), &["upload.limits.series", "receive.limits.series"]),
        ("--limit-labels", one(limit_labels), &["upload.limits.labels", "receive.limits.labels"]),
        ("--limit-label-name-bytes", one(limit_label_name_bytes), &["upload.limits.label_name_bytes"]),
        ("--limit-label-value-bytes", one(limit_label_value_bytes), &["upload.limits.label_value_bytes"]),
        ("--limit-receive-label-name-bytes", one(limit_receive_label_name_bytes), &["receive.limits.label_name_bytes"]),
        (
            "--limit-receive-label-value-bytes",
            one(limit_receive_label_value_bytes),
            &["receive.limits.label_value_bytes"],
        ),
        ("--ratelimit", one(ratelimit), &["upload.limits.interval"]),
        (
            "--limit-receive-requests-per-second",
            one(limit_receive_requests_per_second),
            &["receive.limits.request_rate"],
        ),
        ("--limit-receive-requests-burst", one(limit_receive_requests_burst), &["receive.limits.request_rate"]),
        ("--limit-receive-samples-per-second", one(limit_receive_samples_per_second), &["receive.limits.sample_rate"]),
        ("--limit-receive-samples-burst", one(limit_receive_samples_burst), &["receive.limits.sample_rate"]),
    ]
}
