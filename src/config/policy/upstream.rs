//! Where writes go, tenant by tenant.

use std::fmt;

use http::Uri;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::super::{ConfigError, show, url_of, wrong};

/// The upstream's URL, with `{tenant}` in it or not.
#[derive(Clone, PartialEq, Eq)]
pub struct Upstream {
    /// With `{tenant}` as it is.
    template: String,
    /// As it is for a tenant named `tenant`.
    uri: Uri,
}

/// Without what may be a key.
impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Upstream").field(&show::hidden_in_query(&self.template)).finish()
    }
}

const TENANT: &str = "{tenant}";
/// RFC 3986's unreserved characters stand for themselves in any part of a URL.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

impl Upstream {
    /// The one at `template`, which `flag` gives.
    ///
    /// # Errors
    /// What is no URL, or has braces where a tenant cannot stand.
    pub fn new(flag: &str, template: &str) -> Result<Self, ConfigError> {
        let uri = url_of(flag, &template.replace(TENANT, "tenant"))?;
        let (_, after_scheme) = template.split_once("://").unwrap_or_default();
        let authority = after_scheme.split(['/', '?']).next().unwrap_or_default();
        if authority.contains(TENANT) {
            return wrong!("{flag}: `{TENANT}` stands in the URL's path or query; the host is the same for all");
        }
        if template.replace(TENANT, "").contains(['{', '}']) {
            return wrong!("{flag}: braces stand in `{TENANT}` alone");
        }
        Ok(Upstream { template: template.to_owned(), uri })
    }

    /// Where it is: scheme and host are the same for every tenant.
    pub fn uri(&self) -> &Uri {
        &self.uri
    }

    /// Whether nobody can write without a tenant.
    pub fn needs_tenant(&self) -> bool {
        self.template.contains(TENANT)
    }

    /// Where a tenant's writes go, if not where all go.
    pub(super) fn of_tenant(&self, tenant: &str) -> Result<Option<Uri>, String> {
        if !self.needs_tenant() {
            return Ok(None);
        }
        let encoded = utf8_percent_encode(tenant, RESERVED).to_string();
        let uri = self.template.replace(TENANT, &encoded).parse();
        let uri: Uri = uri.map_err(|error| format!("tenant `{tenant}` makes no URL: {error}"))?;
        if uri.path().split('/').any(|part| matches!(part, "." | "..")) {
            return Err(format!("tenant `{tenant}`: as a part of a path it would mean another one"));
        }
        Ok(Some(uri))
    }
}

impl std::fmt::Display for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.template)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_is_one_part_of_the_url() {
        let upstream = Upstream::new("--forward-url", "http://o.example/api/{tenant}/receive?t={tenant}").unwrap();
        assert!(upstream.needs_tenant());
        let uri = |tenant| upstream.of_tenant(tenant).map(|uri| uri.unwrap().to_string());
        assert_eq!(uri("gold").unwrap(), "http://o.example/api/gold/receive?t=gold");
        assert_eq!(
            uri("a/b?c#d e%").unwrap(),
            "http://o.example/api/a%2Fb%3Fc%23d%20e%25/receive?t=a%2Fb%3Fc%23d%20e%25"
        );
        assert!(uri("..").is_err() && uri(".").is_err());
    }

    #[test]
    fn without_a_place_for_it_all_write_to_one_url() {
        let upstream = Upstream::new("--forward-url", "http://o.example/receive").unwrap();
        assert_eq!((upstream.needs_tenant(), upstream.of_tenant("..")), (false, Ok(None)));
    }

    #[test]
    fn no_tenant_has_a_host_of_its_own() {
        for url in ["http://{tenant}/", "http://{tenant}.example/", "http://o:{tenant}/", "{tenant}://o/", "http://o/{"]
        {
            assert!(Upstream::new("--forward-url", url).is_err(), "{url}");
        }
    }
}
