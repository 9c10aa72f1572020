//! Secrets from the environment: each flag that takes one has a variable, so that none need be among the process's arguments. No other
//! flag has.

use std::ffi::OsString;

use infogw_layers::client_credentials::ClientSecret;

use super::{ConfigError, Flags, OidcFlags, is_given, wrong};

/// For --client-secret.
pub(crate) const CLIENT_SECRET: &str = "INFOGW_CLIENT_SECRET";
/// For --redis-password.
pub(crate) const REDIS_PASSWORD: &str = "INFOGW_REDIS_PASSWORD";
/// For --redis-sentinel-password.
pub(crate) const REDIS_SENTINEL_PASSWORD: &str = "INFOGW_REDIS_SENTINEL_PASSWORD";

/// What the variable `name` holds; empty is unset.
///
/// # Errors
/// If that is no text.
pub(crate) fn variable(name: &str) -> Result<Option<String>, ConfigError> {
    text(name, std::env::var_os(name))
}

fn text(name: &str, value: Option<OsString>) -> Result<Option<String>, ConfigError> {
    match value.map(OsString::into_string) {
        None => Ok(None),
        Some(Ok(value)) => Ok(Some(value).filter(|value| !value.is_empty())),
        Some(Err(_)) => wrong!("{name}: this is not UTF-8"),
    }
}

impl OidcFlags {
    /// With the client's secret from where `set` has it, if something needs one and none is given.
    pub(crate) fn with_secret(
        &mut self,
        set: impl Fn(&str) -> Result<Option<String>, ConfigError>,
    ) -> Result<(), ConfigError> {
        let has_secret = matches!(&self.client_secret, Some(ClientSecret::Value(secret)) if !secret.is_empty());
        if is_given(&self.oidc_issuer) && !has_secret && !is_given(&self.client_secret_file) {
            self.client_secret = set(CLIENT_SECRET)?.map(|secret| ClientSecret::from(secret.as_str()));
        }
        Ok(())
    }
}

impl Flags {
    /// With the secrets of this process's environment, where neither flag nor file gives one and something needs it.
    ///
    /// # Errors
    /// A variable that is no text.
    pub fn with_environment(self) -> Result<Self, ConfigError> {
        self.with_variables(|name| std::env::var_os(name))
    }

    fn with_variables(mut self, variable: impl Fn(&str) -> Option<OsString>) -> Result<Self, ConfigError> {
        let set = |name: &str| text(name, variable(name));
        self.oidc.with_secret(set)?;
        let stores = &mut self.stores;
        if stores.redis.iter().any(|url| !url.is_empty()) {
            if !stores.gives_redis_password() {
                stores.redis_password = set(REDIS_PASSWORD)?;
            }
            let sentinels = stores.redis_mode.as_deref() == Some("sentinel");
            let given = is_given(&stores.redis_sentinel_password) || is_given(&stores.redis_sentinel_password_file);
            if sentinels && !given {
                stores.redis_sentinel_password = set(REDIS_SENTINEL_PASSWORD)?;
            }
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use clap::{Args as _, FromArgMatches as _};

    use super::*;

    /// What becomes of `args` where each of the variables is set, to its own name.
    fn secrets(args: &[&str]) -> [Option<String>; 3] {
        let command = Flags::augment_args(clap::Command::new("gateway"));
        let matches = command.try_get_matches_from([&["gateway"], args].concat()).unwrap();
        let flags = Flags::from_arg_matches(&matches).unwrap();
        let flags = flags.with_variables(|name| Some(name.into())).unwrap();
        let client_secret = flags.oidc.client_secret.map(|secret| match secret {
            ClientSecret::Value(secret) => secret.to_string(),
            ClientSecret::File(path) => panic!("{}", path.display()),
        });
        let given = |value: Option<String>| value.filter(|value| !value.is_empty());
        [client_secret, given(flags.stores.redis_password), given(flags.stores.redis_sentinel_password)]
    }

    #[test]
    fn the_environment_gives_what_no_flag_does() {
        const ISSUER: &str = "--oidc-issuer=http://a";
        const SENTINELS: [&str; 2] = ["--redis=redis://a", "--redis-mode=sentinel"];
        let (secret, password, sentinel) = (Some(CLIENT_SECRET), Some(REDIS_PASSWORD), Some(REDIS_SENTINEL_PASSWORD));
        for (args, expected) in [
            (&[][..], [None; 3]),
            (&[ISSUER], [secret, None, None]),
            (&[ISSUER, "--client-secret=", "--client-secret-file="], [secret, None, None]),
            (&[ISSUER, "--client-secret=x"], [Some("x"), None, None]),
            (&[ISSUER, "--client-secret-file=x"], [None; 3]),
            (&["--redis="], [None; 3]),
            (&["--redis=redis://a"], [None, password, None]),
            (&["--redis=redis://me@a"], [None, password, None]),
            (&["--redis=redis://a", "--redis-password=x"], [None, Some("x"), None]),
            (&["--redis=redis://a", "--redis-password-file=x"], [None; 3]),
            (&["--redis=redis://:x@a"], [None; 3]),
            (&["--redis=redis+unix:///a?pass=x"], [None; 3]),
            (&SENTINELS, [None, password, sentinel]),
            (&[SENTINELS[0], SENTINELS[1], "--redis-sentinel-password=x"], [None, password, Some("x")]),
            (&[SENTINELS[0], SENTINELS[1], "--redis-sentinel-password-file=x"], [None, password, None]),
        ] {
            assert_eq!(secrets(args), expected.map(|value| value.map(str::to_owned)), "{args:?}");
        }
    }

    #[test]
    fn a_variable_that_is_empty_is_unset_and_one_that_is_no_text_is_wrong() {
        use std::os::unix::ffi::OsStringExt as _;
        let flags = || {
            let mut flags = Flags::default();
            flags.stores.redis = vec!["redis://a".to_owned()];
            flags
        };
        assert_eq!(flags().with_variables(|_| Some("".into())).unwrap().stores.redis_password, None);
        let error = flags().with_variables(|_| Some(OsString::from_vec(b"hush\xff".to_vec()))).unwrap_err();
        assert_eq!(error.to_string(), "INFOGW_REDIS_PASSWORD: this is not UTF-8");
    }
}
