//! Flags and the files that they name to [`Settings`] in which nothing can be invalid any more.

use std::{fs, net::SocketAddr, sync::Arc, time::Duration};

use http::{HeaderValue, Uri};
use infogw_layers::{
    client_credentials::{ClientSecret, KeptToken},
    edit::{Anonymize, DropInvalid, Rename, SetLabels},
    enforce::selector::Selector,
    payload::LARGEST_PAYLOAD,
};

use super::FederateFlags;
use crate::{
    config::{
        ConfigError, Oidc, Tracing, addresses, duration, file, given, label_name, log_level, number, pair, pairs, path,
        secret_file, secret_in, shown, system_roots, url_of, used, with_path, wrong,
    },
    proxy::Proxies,
    scrape::asking_for,
    tls::{ClientFiles, Live},
};

/// What the client shall do.
#[derive(Debug)]
pub struct Settings {
    /// What is scraped: with a selector for each of the matches.
    pub(super) from: Uri,
    pub(super) from_token: Option<KeptToken>,
    pub(super) from_tls: Live<ClientFiles>,
    /// Bytes of a scrape.
    pub(super) limit: usize,
    pub(super) edits: Edits,
    pub(super) to: Destination,
    pub(super) to_tls: Live<ClientFiles>,
    /// On the way there.
    pub(super) proxies: Proxies,
    pub(super) id: Option<String>,
    pub(super) interval: Duration,
    pub(super) listen: Option<Vec<SocketAddr>>,
    pub(super) log_level: tracing::Level,
    pub(super) verbose: bool,
    /// Where spans go, if anywhere.
    pub(super) tracing: Option<Tracing>,
    /// What whoever runs this should know.
    pub(super) warnings: Vec<&'static str>,
}

/// What becomes of each series, in this order. What the gateway wants set is set after it.
pub(super) type Edits = (SetLabels, Rename, DropInvalid, Option<Arc<Anonymize>>);

/// Where it pushes to.
#[derive(Debug)]
pub(super) enum Destination {
    /// A gateway: exchanges `token` at `authorize`.
    Upload { upload: Uri, authorize: Uri, token: ClientSecret },
    /// A receive endpoint.
    Write { url: Uri, credentials: Credentials, tenant: Option<HeaderValue> },
}

/// What a receive endpoint is shown.
#[derive(Debug)]
pub(super) enum Credentials {
    None,
    Token(KeptToken),
    Oidc(Box<Oidc>),
}

impl Destination {
    /// Where the payload goes.
    pub(super) fn url(&self) -> &Uri {
        match self {
            Destination::Upload { upload, .. } => upload,
            Destination::Write { url, .. } => url,
        }
    }

    /// Whatever is called.
    fn urls(&self) -> impl Iterator<Item = &Uri> {
        let authorize = match self {
            Destination::Upload { authorize, .. } => Some(authorize),
            Destination::Write { .. } => None,
        };
        std::iter::once(self.url()).chain(authorize)
    }
}

/// Who pushes more often helps nobody.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(10);
const DEFAULT_INTERVAL: Duration = Duration::from_secs(4 * 60 + 30);
/// telemeter-server's limit on names and values.
const LONGEST_LABEL: usize = 255;

impl Settings {
    /// What `flags` mean.
    ///
    /// # Errors
    /// The first thing that is wrong with them, or with a file that they name.
    pub fn new(flags: FederateFlags) -> Result<Self, ConfigError> {
        Settings::through(Proxies::of_environment().map_err(ConfigError)?, flags)
    }

    /// As [`new`](Self::new), with these proxies on the way to whoever is pushed to.
    pub(crate) fn through(proxies: Proxies, flags: FederateFlags) -> Result<Self, ConfigError> {
        let mut warnings = Vec::new();
        let Some(from) = given(flags.from) else {
            return wrong!("--from is required: the URL of a Prometheus, such as http://localhost:9090");
        };
        let from = with_path(&url_of("--from", &from)?, |path| match path.trim_end_matches('/') {
            "" => "/federate".to_owned(),
            path => path.to_owned(),
        });
        let from_pair =
            pair(("--tls-cert-file", flags.tls_cert_file), ("--tls-private-key-file", flags.tls_private_key_file))?;
        let roots = Arc::new(system_roots());
        let mut from_files = ClientFiles {
            ca: file("--from-ca-file", flags.from_ca_file)?,
            pair: from_pair,
            ..ClientFiles::new("from", Arc::clone(&roots))
        };
        if from.scheme_str() != Some("https") && (from_files.ca.is_some() || from_files.pair.is_some()) {
            warnings.push("--from is no https:// URL: its authorities and certificate are of no use");
            from_files = ClientFiles::new("from", Arc::clone(&roots));
        }
        let from_tls = Live::new(from_files)?;
        let matches = matches(&flags.matches, flags.match_file)?;
        let from = asking_for(&from, &matches)
            .map_err(|error| ConfigError(format!("--match: {error}; use fewer or shorter selectors")))?;

        let to = Targets {
            to: url("--to", flags.to)?,
            upload: url("--to-upload", flags.to_upload)?,
            authorize: url("--to-auth", flags.to_auth)?,
            write: url("--to-write", flags.to_write)?,
        };
        let id = given(flags.id);
        let token = secret(flags.to_token, ("--to-token-file", flags.to_token_file))?;
        let oidc = Oidc::new(flags.oidc, &roots)?;
        let to = to.read(id.as_deref(), token, oidc, given(flags.to_tenant_id))?;
        let to_files =
            ClientFiles { ca: file("--to-ca-file", flags.to_ca_file)?, ..ClientFiles::new("to", Arc::clone(&roots)) };
        let secure = to.urls().find(|url| url.scheme_str() == Some("https"));
        let to_tls = used(to_files, "--to", secure)?;

        let names = separated(&flags.anonymize_labels);
        let names =
            names.map(|name| label_name("--anonymize-labels", name.to_owned())).collect::<Result<Vec<_>, _>>()?;
        let anonymize = if names.is_empty() {
            warnings.push("no --anonymize-labels: every label is pushed as it is");
            None
        } else {
            let salt = match (given(flags.anonymize_salt), path("--anonymize-salt-file", flags.anonymize_salt_file)?) {
                (Some(salt), _) => salt,
                // As telemeter-client reads it: a change here would change every hash.
                (None, Some(path)) => secret_in("--anonymize-salt-file", &path)?.trim().to_owned(),
                (None, None) => return wrong!("--anonymize-labels needs --anonymize-salt-file or --anonymize-salt"),
            };
            let anonymize = Anonymize::new(salt, names);
            Some(Arc::new(anonymize.map_err(|error| ConfigError(format!("--anonymize-salt-file: {error}")))?))
        };
        let edits = (
            SetLabels::new(pairs("--label", &flags.label)?),
            Rename::new(renames(&flags.rename)?),
            DropInvalid::new(LONGEST_LABEL),
            anonymize,
        );
        let interval = match given(flags.interval) {
            None => DEFAULT_INTERVAL,
            Some(text) => match duration::parse(&text) {
                Ok(Duration::ZERO) => DEFAULT_INTERVAL,
                Ok(interval) if interval < SHORTEST_INTERVAL => return wrong!("--interval: at least 10ms"),
                Ok(interval) => interval,
                Err(error) => return wrong!("--interval: {error}"),
            },
        };
        let limit = match number("--limit-bytes", flags.limit_bytes, 200 << 10)? {
            0 => LARGEST_PAYLOAD,
            limit => limit,
        };
        let tracing = Tracing::new(flags.tracing, "telemeter-client", &roots)?;
        let listen = match flags.listen {
            Some(listen) if listen.is_empty() => None,
            listen => Some(addresses("--listen", listen, "localhost:9002")?),
        };
        Ok(Settings {
            from,
            from_token: secret(flags.from_token, ("--from-token-file", flags.from_token_file))?
                .map(|token| KeptToken::new(token, "--from-token-file")),
            from_tls,
            limit,
            edits,
            to,
            to_tls,
            proxies,
            id,
            interval,
            listen,
            log_level: log_level(flags.log_level)?,
            verbose: flags.verbose,
            tracing,
            warnings,
        })
    }
}

impl Settings {
    /// What is scraped.
    pub fn from(&self) -> &Uri {
        &self.from
    }

    /// Where that is pushed to.
    pub fn to(&self) -> &Uri {
        self.to.url()
    }

    /// Where to listen, if anywhere.
    pub fn listen(&self) -> Option<&[SocketAddr]> {
        self.listen.as_deref()
    }

    /// The least severe level that is logged.
    pub fn log_level(&self) -> tracing::Level {
        self.log_level
    }

    /// Says what a reader of the log must know about these.
    pub fn warn(&self) {
        for text in &self.warnings {
            tracing::warn!("{text}");
        }
    }
}

/// What the flags say of where to.
struct Targets {
    to: Option<Uri>,
    upload: Option<Uri>,
    authorize: Option<Uri>,
    write: Option<Uri>,
}

impl Targets {
    fn read(
        self,
        id: Option<&str>,
        token: Option<ClientSecret>,
        oidc: Option<Oidc>,
        tenant: Option<String>,
    ) -> Result<Destination, ConfigError> {
        let Targets { to, upload, authorize, write } = self;
        if let Some(url) = write {
            if to.is_some() || upload.is_some() || authorize.is_some() {
                return wrong!("--to-write and --to, --to-upload, --to-auth exclude each other: push to one place");
            }
            let credentials = match (token, oidc) {
                (None, None) => Credentials::None,
                (Some(token), None) => Credentials::Token(KeptToken::new(token, "--to-token-file")),
                (None, Some(oidc)) => Credentials::Oidc(Box::new(oidc)),
                (Some(_), Some(_)) => {
                    return wrong!("--to-token-file and --oidc-issuer exclude each other; give one of them");
                }
            };
            let tenant = tenant.map(|tenant| tenant.parse()).transpose();
            let tenant = tenant.map_err(|_| ConfigError("--to-tenant-id: this cannot stand in a header".to_owned()))?;
            return Ok(Destination::Write { url, credentials, tenant });
        }
        if oidc.is_some() || tenant.is_some() {
            let flag = if oidc.is_some() { "--oidc-issuer" } else { "--to-tenant-id" };
            return wrong!("{flag} is for --to-write; a gateway's /authorize takes --to-token-file");
        }
        let below =
            |name: &str| to.as_ref().map(|to| with_path(to, |path| format!("{}/{name}", path.trim_end_matches('/'))));
        let (upload, authorize) = match (upload.or_else(|| below("upload")), authorize) {
            (Some(upload), Some(authorize)) => (upload, authorize),
            (Some(upload), None) => match below("authorize") {
                Some(authorize) => (upload, with_id(&authorize, id)),
                None => return wrong!("--to-upload needs --to-auth, where the token is exchanged; or give --to"),
            },
            (None, Some(_)) => return wrong!("--to-auth needs --to-upload, where to push to; or give --to"),
            (None, None) => {
                return wrong!("--to is required: the URL of a gateway; or --to-upload and --to-auth, or --to-write");
            }
        };
        let Some(token) = token else {
            return wrong!("--to-token-file or --to-token is required: the token that is exchanged for the gateway's");
        };
        Ok(Destination::Upload { upload, authorize, token })
    }
}

fn url(flag: &str, value: Option<String>) -> Result<Option<Uri>, ConfigError> {
    given(value).map(|value| url_of(flag, &value)).transpose()
}

fn with_id(authorize: &Uri, id: Option<&str>) -> Uri {
    let Some(id) = id else { return authorize.clone() };
    let mut query = form_urlencoded::Serializer::new(authorize.query().unwrap_or_default().to_owned());
    query.append_pair("id", id);
    let query = query.finish();
    let mut parts = authorize.clone().into_parts();
    parts.path_and_query = format!("{}?{query}", authorize.path()).parse().ok();
    Uri::from_parts(parts).unwrap_or_else(|_| authorize.clone())
}

/// What a flag gives goes before what is in a file, as telemeter-client has it. The file must be there now, and is read again whenever
/// the secret is used.
fn secret(
    value: Option<String>,
    (file_flag, file): (&str, Option<String>),
) -> Result<Option<ClientSecret>, ConfigError> {
    match (given(value), path(file_flag, file)?) {
        (Some(value), _) => Ok(Some(ClientSecret::from(value.trim()))),
        (None, Some(path)) => secret_file(file_flag, path).map(Some),
        (None, None) => Ok(None),
    }
}

/// The selectors of the flag, or its default; and those in the file.
fn matches(flags: &[String], file: Option<String>) -> Result<Vec<String>, ConfigError> {
    let mut matches: Vec<String> = Vec::new();
    let mut add = |flag: &str, selector: &str| -> Result<(), ConfigError> {
        let selector = selector.trim();
        if !selector.is_empty() {
            let parsed = selector.parse::<Selector>();
            parsed.map_err(|error| ConfigError(format!("{flag}: `{selector}`: {error}")))?;
            matches.push(selector.to_owned());
        }
        Ok(())
    };
    for selector in flags {
        add("--match", selector)?;
    }
    if flags.iter().all(String::is_empty) {
        add("--match", r#"{__name__="up"}"#)?;
    }
    if let Some(path) = path("--match-file", file)? {
        let text = fs::read_to_string(&path).map_err(|error| ConfigError(format!("--match-file: {path}: {error}")))?;
        for line in text.lines() {
            add("--match-file", line)?;
        }
    }
    Ok(matches)
}

/// Old and new names. telemeter-client's default, unless something is given; a comma alone renames nothing.
fn renames(flags: &[String]) -> Result<Vec<(String, String)>, ConfigError> {
    if flags.iter().all(String::is_empty) {
        return Ok(vec![("ALERTS".to_owned(), "alerts".to_owned())]);
    }
    let rename = |pair: &str| match pair.split_once('=') {
        Some((old, new)) if !old.is_empty() && !new.is_empty() => Ok((old.to_owned(), new.to_owned())),
        _ => wrong!("--rename: {} is not old=new", shown(pair)),
    };
    separated(flags).map(rename).collect()
}

/// What is between commas.
fn separated(flags: &[String]) -> impl Iterator<Item = &str> {
    flags.iter().flat_map(|values| values.split(',')).map(str::trim).filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use clap::{Args as _, FromArgMatches as _};

    use super::*;

    fn settings(args: &[&str]) -> Result<Settings, String> {
        let command = FederateFlags::augment_args(clap::Command::new("federate"));
        let matches = command.try_get_matches_from([&["federate"], args].concat()).map_err(|e| e.to_string())?;
        Settings::new(FederateFlags::from_arg_matches(&matches).unwrap()).map_err(|error| error.to_string())
    }

    const FROM: &str = "--from=http://localhost:9090";
    const TO: [&str; 2] = ["--to=http://localhost:9003/", "--to-token=t"];

    #[test]
    fn urls_are_as_telemeter_client_makes_them() {
        let urls = |args: &[&str]| {
            let settings = settings(args).unwrap();
            let to = match settings.to {
                Destination::Upload { upload, authorize, .. } => [upload.to_string(), authorize.to_string()],
                Destination::Write { url, .. } => [url.to_string(), String::new()],
            };
            (settings.from.to_string(), to)
        };
        const UP: &str = "match%5B%5D=%7B__name__%3D%22up%22%7D";
        let upload = "http://localhost:9003/upload".to_owned();
        let authorize = "http://localhost:9003/authorize".to_owned();
        for (args, from, to) in [
            (
                &[FROM, TO[0], TO[1]][..],
                format!("http://localhost:9090/federate?{UP}"),
                [upload.clone(), authorize.clone()],
            ),
            (
                &["--from=https://p/a/?x=y", TO[0], TO[1], "--id=a b&c", "--match=b", "--match= {c=\"d\"}"],
                "https://p/a?x=y&match%5B%5D=b&match%5B%5D=%7Bc%3D%22d%22%7D".to_owned(),
                [upload, format!("{authorize}?id=a+b%26c")],
            ),
            (
                &[FROM, "--to=http://t/sub?k=v", TO[1], "--id=c", "--match="],
                format!("http://localhost:9090/federate?{UP}"),
                ["http://t/sub/upload?k=v".to_owned(), "http://t/sub/authorize?k=v&id=c".to_owned()],
            ),
            (
                &[FROM, "--to-upload=http://a/u", "--to-auth=http://b/v", "--to-token=t", "--id=c"],
                format!("http://localhost:9090/federate?{UP}"),
                ["http://a/u".to_owned(), "http://b/v".to_owned()],
            ),
            (
                &[FROM, "--to-write=http://a/w"],
                format!("http://localhost:9090/federate?{UP}"),
                ["http://a/w".to_owned(), String::new()],
            ),
        ] {
            assert_eq!(urls(args), (from, to), "{args:?}");
        }
    }

    #[test]
    fn what_is_wrong_is_one_line() {
        for (args, expected) in [
            (&TO[..], "--from is required: the URL of a Prometheus, such as http://localhost:9090"),
            (&["--from=localhost"], "--from: `localhost` is not an http:// or https:// URL"),
            (&[FROM], "--to is required: the URL of a gateway; or --to-upload and --to-auth, or --to-write"),
            (
                &[FROM, "--to=http://a"],
                "--to-token-file or --to-token is required: the token that is exchanged for the gateway's",
            ),
            (
                &[FROM, "--to-upload=http://a", "--to-token=t"],
                "--to-upload needs --to-auth, where the token is exchanged; or give --to",
            ),
            (
                &[FROM, "--to-auth=http://a", "--to-token=t"],
                "--to-auth needs --to-upload, where to push to; or give --to",
            ),
            (
                &[FROM, TO[0], TO[1], "--to-write=http://a"],
                "--to-write and --to, --to-upload, --to-auth exclude each other: push to one place",
            ),
            (
                &[FROM, TO[0], TO[1], "--to-tenant-id=a"],
                "--to-tenant-id is for --to-write; a gateway's /authorize takes --to-token-file",
            ),
            (&[FROM, TO[0], TO[1], "--match={"], "--match: `{`: "),
            (
                &[FROM, TO[0], TO[1], "--match-file=/nowhere/at/all"],
                "--match-file: /nowhere/at/all: No such file or directory (os error 2)",
            ),
            (&[FROM, TO[0], TO[1], "--rename=a"], "--rename: `a` is not old=new"),
            (&[FROM, TO[0], TO[1], "--rename=a="], "--rename: `a=` is not old=new"),
            (&[FROM, TO[0], TO[1], "--label=a"], "--label: `a` is not name=value"),
            (
                &[FROM, TO[0], TO[1], "--anonymize-labels=a"],
                "--anonymize-labels needs --anonymize-salt-file or --anonymize-salt",
            ),
            (
                &[FROM, TO[0], TO[1], "--anonymize-labels=a-b", "--anonymize-salt=s"],
                "--anonymize-labels: `a-b` is not a label name",
            ),
            (
                &[FROM, TO[0], TO[1], "--interval=5"],
                "--interval: `5` is not a duration; write it like 4m30s, 1.5h or 100ms",
            ),
            (&[FROM, TO[0], TO[1], "--limit-bytes=-1"], "--limit-bytes: `-1` is not a whole number from 0 up"),
            (&[FROM, TO[0], TO[1], "--log-level=loud"], "--log-level: `loud` is none of debug, info, warn, error"),
            (
                &[FROM, "--to=http://a", "--to-token-file=/nowhere/at/all"],
                "--to-token-file: /nowhere/at/all: No such file or directory (os error 2)",
            ),
            (
                &[FROM, TO[0], TO[1], "--tls-cert-file=/a"],
                "--tls-cert-file: a certificate needs its key; give --tls-private-key-file, too",
            ),
            (&[FROM, TO[0], TO[1], "--listen=a"], "--listen: `a` is not an address like 0.0.0.0:9003: "),
        ] {
            let error = settings(args).unwrap_err();
            assert!(error.starts_with(expected) && (error == expected || expected.ends_with(": ")), "{error}");
        }
    }

    #[test]
    fn empty_is_unset_and_the_last_one_counts() {
        let empty = [
            "--from-ca-file=",
            "--from-token=",
            "--from-token-file=",
            "--tls-cert-file=",
            "--tls-private-key-file=",
            "--to-upload=",
            "--to-auth=",
            "--to-write=",
            "--to-token-file=",
            "--id=",
            "--match=",
            "--match-file=",
            "--label=",
            "--rename=",
            "--anonymize-labels=",
            "--anonymize-salt=",
            "--anonymize-salt-file=",
            "--interval=",
            "--limit-bytes=",
            "--log-level=",
            "--oidc-issuer=",
            "--internal.tracing.service-name=",
            "--internal.tracing.endpoint=",
            "--internal.tracing.endpoint-type=",
            "--internal.tracing.sampling-fraction=",
            "-v",
        ];
        let settings = settings(
            &[&[FROM, "--to=http://wrong", TO[0], TO[1], "--listen=localhost:1", "--listen="], &empty[..]].concat(),
        );
        let settings = settings.unwrap();
        assert_eq!((settings.interval, settings.limit, settings.listen), (DEFAULT_INTERVAL, 204_800, None));
        assert_eq!(settings.to.url(), "http://localhost:9003/upload");
        assert!(settings.id.is_none() && settings.from_token.is_none() && settings.verbose);
    }

    #[test]
    fn alerts_are_renamed_unless_something_else_is_said() {
        let names = |flags: &[&str]| renames(&flags.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap();
        let pair = |old: &str, new: &str| (old.to_owned(), new.to_owned());
        assert_eq!(names(&[]), [pair("ALERTS", "alerts")]);
        assert_eq!(names(&[""]), [pair("ALERTS", "alerts")]);
        assert_eq!(names(&[","]), []);
        assert_eq!(names(&["a=b,c=d", "e=f=g"]), [pair("a", "b"), pair("c", "d"), pair("e", "f=g")]);
    }

    #[test]
    fn no_debug_shows_a_secret() {
        let args =
            [FROM, TO[0], "--to-token=hush", "--from-token=hush", "--anonymize-labels=a", "--anonymize-salt=hush"];
        let command = FederateFlags::augment_args(clap::Command::new("federate"));
        let matches = command.try_get_matches_from([&["federate"], &args[..]].concat()).unwrap();
        let flags = FederateFlags::from_arg_matches(&matches).unwrap();
        let shown = format!("{flags:?} {:?}", Settings::new(flags.clone()).unwrap());
        assert!(!shown.contains("hush") && shown.contains("localhost"), "{shown}");
    }
}
