use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use http::{HeaderValue, Uri};

use crate::{
    authorize::{Identity, Writes},
    decode::DecodeLimits,
    enforce::{ClusterLabelCheck, LabelNames, LabelPairs, LabelPolicy, selector::SelectorSet},
    payload::{LARGEST_PAYLOAD, MOST_SERIES},
    rate_limit::Quota,
    rejection::{Reason, Rejection, excerpt},
};

/// What holds for one sender at one endpoint.
#[derive(Debug, Clone)]
pub struct Terms {
    /// What its series must be, and what is done to them.
    pub labels: Arc<LabelPolicy>,
    /// What one request may hold.
    pub limits: Arc<DecodeLimits>,
    /// How many requests; unlimited without.
    pub request_quota: Option<Quota>,
    /// How many samples; unlimited without.
    pub sample_quota: Option<Quota>,
    /// Labels that go into the tokens it is issued, which then hold its series to them.
    pub token_labels: LabelPairs,
    /// Where it writes; none is the upstream's own default.
    pub tenant: Option<Arc<Tenant>>,
    /// Why it may not come at all. The last one that still holds counts.
    pub denials: Vec<Arc<Denial>>,
}

impl Terms {
    /// `labels` and `limits`; no quotas, no tenant.
    pub fn new(labels: impl Into<Arc<LabelPolicy>>, limits: impl Into<Arc<DecodeLimits>>) -> Self {
        Terms {
            labels: labels.into(),
            limits: limits.into(),
            request_quota: None,
            sample_quota: None,
            token_labels: Arc::default(),
            tenant: None,
            denials: Vec::new(),
        }
    }

    /// These terms with `settings`, the later ones over the earlier. What they exempt from does not hold, whatever else they say.
    #[must_use]
    pub fn with<'s>(&self, settings: impl IntoIterator<Item = &'s Setting>) -> Self {
        let mut terms = self.clone();
        terms.apply(settings);
        terms
    }

    pub(super) fn apply<'s>(&mut self, settings: impl IntoIterator<Item = &'s Setting>) {
        let mut exempt = Exempt::default();
        for setting in settings {
            self.set(setting, &mut exempt);
        }
        if exempt.rates {
            (self.request_quota, self.sample_quota) = (None, None);
        }
        if exempt.sizes {
            let unrepeatable = self.limits.unrepeatable.clone();
            self.limits = Arc::new(DecodeLimits { unrepeatable, ..UNLIMITED });
        }
        if exempt.allowlist {
            Arc::make_mut(&mut self.labels).allowlist = None;
        }
    }

    /// What several settings share is copied once.
    fn set(&mut self, setting: &Setting, exempt: &mut Exempt) {
        match setting {
            Setting::Allowlist(set) => Arc::make_mut(&mut self.labels).allowlist = Some(Arc::clone(set)),
            Setting::Elide(names) => Arc::make_mut(&mut self.labels).elide = Arc::clone(names),
            Setting::Set(labels) => Arc::make_mut(&mut self.labels).set = Arc::clone(labels).into(),
            Setting::Require(labels) => {
                Arc::make_mut(&mut self.labels).require = Arc::clone(labels);
                Arc::make_mut(&mut self.limits).hold(labels);
            }
            Setting::TokenLabels(labels) => {
                self.token_labels = Arc::clone(labels);
                Arc::make_mut(&mut self.limits).hold(labels);
            }
            Setting::Check(check) => Arc::make_mut(&mut self.labels).check = *check,
            Setting::Writes(writes) => Arc::make_mut(&mut self.labels).writes = Some(writes.clone()),
            Setting::RequestQuota(quota) => self.request_quota = *quota,
            Setting::SampleQuota(quota) => self.sample_quota = *quota,
            Setting::Limit(size, limit) => *size.of(Arc::make_mut(&mut self.limits)) = *limit,
            Setting::Tenant(tenant) => self.tenant = Some(Arc::clone(tenant)),
            Setting::Denial(None) => self.denials.clear(),
            Setting::Denial(Some(denial)) => self.denials.push(Arc::clone(denial)),
            Setting::Exempt(kinds) => *exempt = *kinds,
        }
    }
}

/// Whatever a payload can count.
const UNLIMITED: DecodeLimits = DecodeLimits {
    body: LARGEST_PAYLOAD,
    decoded: LARGEST_PAYLOAD,
    series: MOST_SERIES,
    samples: usize::MAX,
    labels: usize::MAX,
    label_name: usize::MAX,
    label_value: usize::MAX,
    unrepeatable: Vec::new(),
};

impl DecodeLimits {
    /// What says whose a series is must not be said twice.
    fn hold(&mut self, labels: &LabelPairs) {
        for (name, _) in &**labels {
            if !self.unrepeatable.contains(name) {
                self.unrepeatable.push(name.clone());
            }
        }
    }
}

/// One thing that is otherwise for some. Each replaces the whole of what it is named after.
#[derive(Debug, Clone)]
pub enum Setting {
    /// Which series pass.
    Allowlist(Arc<SelectorSet>),
    /// Labels that are removed.
    Elide(LabelNames),
    /// Labels that are set.
    Set(LabelPairs),
    /// Labels that series must carry.
    Require(LabelPairs),
    /// Labels that go into tokens.
    TokenLabels(LabelPairs),
    /// What happens to series of other clusters.
    Check(ClusterLabelCheck),
    /// Whose series may be written.
    Writes(Writes),
    /// How many requests.
    RequestQuota(Option<Quota>),
    /// How many samples.
    SampleQuota(Option<Quota>),
    /// How much of something in one request.
    Limit(Size, usize),
    /// Where it writes.
    Tenant(Arc<Tenant>),
    /// Why it may not come at all; none takes back what was said before.
    Denial(Option<Arc<Denial>>),
    /// What does not hold for it.
    Exempt(Exempt),
}

/// What [`DecodeLimits`] bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// Bytes of the body as received.
    Body,
    /// Bytes of the body after decompression.
    Decoded,
    /// Series in a request.
    Series,
    /// Samples in a request.
    Samples,
    /// Labels of a series.
    Labels,
    /// Bytes of a label's name.
    LabelName,
    /// Bytes of a label's value.
    LabelValue,
}

impl Size {
    fn of(self, limits: &mut DecodeLimits) -> &mut usize {
        match self {
            Size::Body => &mut limits.body,
            Size::Decoded => &mut limits.decoded,
            Size::Series => &mut limits.series,
            Size::Samples => &mut limits.samples,
            Size::Labels => &mut limits.labels,
            Size::LabelName => &mut limits.label_name,
            Size::LabelValue => &mut limits.label_value,
        }
    }
}

/// Which kinds of limit do not hold for somebody, save for those that are said of it more specifically.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Exempt {
    /// Quotas.
    pub rates: bool,
    /// What one request may hold. What a payload can count stays.
    pub sizes: bool,
    /// The allowlist.
    pub allowlist: bool,
}

/// A tenant of the upstream.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Tenant {
    /// The value of the tenant header.
    pub header: HeaderValue,
    /// Where its writes go, if not where all go.
    pub uri: Option<Uri>,
}

/// Without the URL: keys may stand in its query.
impl fmt::Debug for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tenant").field("header", &self.header).finish_non_exhaustive()
    }
}

/// Why somebody may not come, and until when.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Denial {
    /// What the sender is told.
    pub reason: Box<str>,
    /// Until when; for good without.
    pub until: Option<SystemTime>,
}

impl Denial {
    /// What the sender is told.
    pub(super) fn rejection(&self, identity: &Identity) -> Rejection {
        // What lies behind the year 9999 has no RFC 3339.
        let last = SystemTime::UNIX_EPOCH + Duration::from_secs(253_402_300_799);
        let until = self.until.filter(|until| *until <= last);
        let until = until.map_or_else(
            || "for good".to_owned(),
            |until| format!("until {}", humantime::format_rfc3339_seconds(until)),
        );
        let (cluster, reason) = (excerpt(identity.cluster.as_str()), &self.reason);
        Rejection::new(Reason::Denied, format!("cluster `{cluster}` may not write here, {until}: {reason}"))
    }

    /// Whether it holds at `now`.
    pub fn holds(&self, now: SystemTime) -> bool {
        self.until.is_none_or(|until| now < until)
    }
}
