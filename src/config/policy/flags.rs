//! What flags say of the policy.

use std::path::PathBuf;

use clap::Args;

use super::{
    super::{ConfigError, given, label_name, number, pairs, wrong},
    document::{ClusterLabelCheckMode, Document, Receive, ReceiveLimits, Tenant, Tenants, Upload, UploadLimits},
    values::{At, LabelName, Labels, Rule, SeriesLimit, SizeLimit, TenantName},
};
use crate::config::RateFlags;

/// Flags of what may be written, and where it goes.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Policy")]
pub struct PolicyFlags {
    /// YAML file with what clusters may write, with exceptions by account and cluster. Each key in it goes over the flag that it is
    /// named after. Read again when it changes and on SIGHUP.
    #[arg(long, value_name = "FILE")]
    pub policy: Option<String>,
    /// PromQL selector of series to let pass, such as {__name__="up"}; repeatable. Without any, all pass.
    #[arg(long, value_name = "RULE", allow_hyphen_values = true)]
    pub whitelist: Vec<String>,
    /// File with a selector a line; repeatable. Read again when it changes and on SIGHUP.
    #[arg(long, value_name = "FILE")]
    pub whitelist_file: Vec<String>,
    /// Label to set on uploaded series, name=value; repeatable, comma-separated.
    #[arg(long, value_name = "NAME=VALUE")]
    pub label: Vec<String>,
    /// Label to remove from uploaded series; repeatable.
    #[arg(long, value_name = "NAME")]
    pub elide_label: Vec<String>,
    /// Label to set on series received by remote write, name=value; repeatable, comma-separated.
    #[arg(long, value_name = "NAME=VALUE")]
    pub receive_label: Vec<String>,
    /// Label to remove from series received by remote write; repeatable.
    #[arg(long, value_name = "NAME")]
    pub receive_elide_label: Vec<String>,
    /// Label that goes into issued tokens and so must be on uploaded series, name=value; repeatable, comma-separated.
    #[arg(long, value_name = "NAME=VALUE")]
    pub required_label: Vec<String>,
    /// What happens to a received series with another cluster's label: enforce, count or off [default: enforce].
    #[arg(long, value_name = "MODE")]
    pub cluster_label_check: Option<String>,

    /// THANOS-TENANT of forwarded uploads [default: FB870BF3-9F3A-44FF-9BF7-D7A047A52F43].
    #[arg(long, value_name = "TENANT", help_heading = "Upstream")]
    pub tenant_id: Option<String>,
    /// THANOS-TENANT of forwarded remote-write requests; none unless given.
    #[arg(long, value_name = "TENANT", help_heading = "Upstream")]
    pub receive_tenant_id: Option<String>,

    /// Largest upload, decoded; 0 is unlimited [default: 512000].
    #[arg(long, value_name = "BYTES", help_heading = "Limits")]
    pub limit_bytes: Option<String>,
    /// Largest remote-write request, on the wire; 0 is unlimited [default: 131072].
    #[arg(long, value_name = "BYTES", help_heading = "Limits")]
    pub limit_receive_bytes: Option<String>,
    /// Largest remote-write request, decoded; 0 is unlimited [default: 16777216].
    #[arg(long, value_name = "BYTES", help_heading = "Limits")]
    pub limit_receive_decoded_bytes: Option<String>,
    /// Most series in a request, 4194304 at most; 0 is that most [default: 20000].
    #[arg(long, value_name = "SERIES", help_heading = "Limits")]
    pub limit_series: Option<String>,
    /// Most labels of a series, its name among them; 0 is unlimited [default: 128].
    #[arg(long, value_name = "LABELS", help_heading = "Limits")]
    pub limit_labels: Option<String>,
    /// Longest label name of an uploaded series; 0 is unlimited [default: 255].
    #[arg(long, value_name = "BYTES", help_heading = "Limits")]
    pub limit_label_name_bytes: Option<String>,
    /// Longest label value, and metric name, of an uploaded series; 0 is unlimited [default: 255].
    #[arg(long, value_name = "BYTES", help_heading = "Limits")]
    pub limit_label_value_bytes: Option<String>,
    /// Longest label name of a received series; 0 is unlimited [default: 0].
    #[arg(long, value_name = "BYTES", help_heading = "Limits")]
    pub limit_receive_label_name_bytes: Option<String>,
    /// Longest label value of a received series; 0 is unlimited [default: 0].
    #[arg(long, value_name = "BYTES", help_heading = "Limits")]
    pub limit_receive_label_value_bytes: Option<String>,
    /// How often a cluster may write, and how much.
    #[command(flatten)]
    pub rates: RateFlags,
}

/// What the flags say, each with its default; and where more rules stand.
#[derive(Debug, Clone)]
pub(super) struct Said {
    pub(super) document: Document,
    pub(super) whitelist: Vec<At<Rule>>,
    pub(super) whitelist_files: Vec<PathBuf>,
    pub(super) policy_file: Option<PathBuf>,
}

impl PolicyFlags {
    pub(super) fn read(self) -> Result<Said, ConfigError> {
        let rules = self.whitelist.iter().map(|rule| rule.trim()).filter(|rule| !rule.is_empty());
        let rule = |rule: &str| match rule.parse() {
            Ok(selector) => Ok(At::flag("--whitelist", Rule(selector))),
            Err(error) => wrong!("--whitelist: `{rule}`: {error}"),
        };
        let files = self.whitelist_file.iter().filter(|path| !path.is_empty());
        let series = Some(SeriesLimit(match number("--limit-series", self.limit_series, 20_000)? {
            series if series <= infogw_layers::payload::MOST_SERIES => series as u32,
            _ => return wrong!("--limit-series: at most {} series", infogw_layers::payload::MOST_SERIES),
        }));
        let size = |flag, value, default| size(flag, value, default).map(Some);
        let most_labels = size("--limit-labels", self.limit_labels, 128)?;
        let (interval, request_rate, sample_rate) = self.rates.read()?;
        let upload = Upload {
            allowlist: None,
            elide: names("--elide-label", &self.elide_label)?,
            set: labels("--label", &self.label)?,
            require: labels("--required-label", &self.required_label)?,
            limits: Some(UploadLimits {
                interval: Some(interval),
                decoded_bytes: size("--limit-bytes", self.limit_bytes, 512_000)?,
                series,
                samples: None,
                labels: most_labels,
                label_name_bytes: size("--limit-label-name-bytes", self.limit_label_name_bytes, 255)?,
                label_value_bytes: size("--limit-label-value-bytes", self.limit_label_value_bytes, 255)?,
            }),
        };
        let receive = Receive {
            allowlist: None,
            elide: names("--receive-elide-label", &self.receive_elide_label)?,
            set: labels("--receive-label", &self.receive_label)?,
            require: None,
            cluster_label_check: Some(At::flag(
                "--cluster-label-check",
                match given(self.cluster_label_check).as_deref() {
                    None | Some("enforce") => ClusterLabelCheckMode::Enforce,
                    Some("count") => ClusterLabelCheckMode::Count,
                    Some("off") => ClusterLabelCheckMode::Off,
                    Some(other) => return wrong!("--cluster-label-check: `{other}` is none of enforce, count, off"),
                },
            )),
            limits: Some(ReceiveLimits {
                request_rate,
                sample_rate,
                body_bytes: size("--limit-receive-bytes", self.limit_receive_bytes, 131_072)?,
                decoded_bytes: size("--limit-receive-decoded-bytes", self.limit_receive_decoded_bytes, 16 << 20)?,
                series,
                samples: None,
                labels: most_labels,
                label_name_bytes: size("--limit-receive-label-name-bytes", self.limit_receive_label_name_bytes, 0)?,
                label_value_bytes: size("--limit-receive-label-value-bytes", self.limit_receive_label_value_bytes, 0)?,
            }),
        };
        let default = "FB870BF3-9F3A-44FF-9BF7-D7A047A52F43";
        let tenants = Tenants {
            upload: Some(tenant("--tenant-id", given(self.tenant_id).as_deref().unwrap_or(default))?),
            receive: given(self.receive_tenant_id).map(|id| tenant("--receive-tenant-id", &id)).transpose()?,
            ..Tenants::default()
        };
        Ok(Said {
            document: Document {
                upload: Some(upload),
                receive: Some(receive),
                tenants: Some(tenants),
                overrides: None,
            },
            whitelist: rules.map(rule).collect::<Result<_, _>>()?,
            whitelist_files: files.map(PathBuf::from).collect(),
            policy_file: given(self.policy).map(PathBuf::from),
        })
    }
}

fn size(flag: &'static str, value: Option<String>, default: usize) -> Result<SizeLimit, ConfigError> {
    let limit = number(flag, value, default)?;
    // What is over is not reached either: payloads are smaller.
    Ok(SizeLimit(u32::try_from(limit).unwrap_or(0)))
}

fn tenant(flag: &'static str, name: &str) -> Result<At<Tenant>, ConfigError> {
    let name = TenantName::new(name).map_err(|error| ConfigError(format!("{flag}: {error}")))?;
    Ok(At::flag(flag, Tenant::named(name)))
}

fn names(flag: &'static str, values: &[String]) -> Result<Option<Vec<At<LabelName>>>, ConfigError> {
    let values = values.iter().filter(|value| !value.is_empty());
    let names = values.map(|value| Ok(At::flag(flag, LabelName(label_name(flag, value.clone())?.into()))));
    let names = names.collect::<Result<Vec<_>, ConfigError>>()?;
    Ok(Some(names).filter(|names| !names.is_empty()))
}

fn labels(flag: &'static str, values: &[String]) -> Result<Option<At<Labels>>, ConfigError> {
    let pairs = pairs(flag, values)?.into_iter().map(|(name, value)| (LabelName(name.into()), value));
    Ok(Some(At::flag(flag, Labels::from_iter(pairs))).filter(|labels| !labels.value.is_empty()))
}
