//! `infogw-proxy token read`.

use std::{
    fmt::Write as _,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use clap::{Args, ValueEnum};
use http::{Request, header};
use infogw_layers::{
    authorize::{
        CompositeToken, CredentialSource as _,
        jwt::{TokenError, TokenVerifier, read_unverified},
        token::TokenAuthorizer,
    },
    clock::{Clock as _, SystemClock},
    rejection::{Reason, Rejection},
};
use serde::Serialize;
use serde_json::{Map, Value};

use super::{
    super::{Exit, Failure, print, read},
    make::keys,
};
use crate::config::{given, label_name};

/// The longest input that is read, in bytes.
const LONGEST_INPUT: u64 = 64 * 1024;

/// Flags of `token read`.
#[derive(Debug, Clone, Args)]
pub struct ReadArgs {
    /// File with the token, as it is, behind `Bearer`, or in the answer of /authorize; `-` is stdin.
    #[arg(value_name = "FILE", default_value = "-")]
    file: String,
    /// Private key of the gateway, to verify the signature of an upload's token; repeatable.
    #[arg(long, value_name = "FILE")]
    shared_key: Vec<String>,
    /// Label that carries the cluster id, as the gateway has it [default: _id].
    #[arg(long, value_name = "NAME")]
    partition_label: Option<String>,
    /// How to say it.
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value_t = Format::Text)]
    output: Format,
    /// Show the cluster's own token, and the values of other fields, of a token for /metrics/v1/receive.
    #[arg(long)]
    show_secrets: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Lines for people.
    Text,
    /// One JSON object.
    Json,
}

pub(super) fn run(args: ReadArgs) -> Result<Exit, Failure> {
    let partition_label =
        label_name("--partition-label", given(args.partition_label).unwrap_or_else(|| "_id".to_owned()))?;
    let keys = Keys::read(args.shared_key)?;
    let input = read(&args.file, LONGEST_INPUT)?;
    let report = match token_in(&input) {
        // Nothing else has dots.
        Some(token) if token.contains('.') => {
            Jwt::read(&token, &keys, &partition_label, SystemClock.now()).map(|jwt| Report::Upload(Box::new(jwt)))
        }
        Some(token) => Composite::read(&token, args.show_secrets).map(Report::Receive),
        None => None,
    };
    let Some(report) = report else {
        let name = if args.file == "-" { "stdin" } else { &args.file };
        let why = "is no token: neither a JWT, as /authorize issues it, nor base64 of {\"authorization_token\":…,\"cluster_id\":…}";
        return Err(Failure::new(Exit::Data, format_args!("{name}: {why}")));
    };
    match args.output {
        Format::Text => print(&report.text(SystemClock.now()))?,
        Format::Json => {
            // Strings and numbers always serialise.
            let json = serde_json::to_string_pretty(&report).unwrap_or_default();
            print(&format!("{json}\n"))?;
        }
    }
    Ok(if report.refused().is_some() { Exit::Negative } else { Exit::Done })
}

/// The token as it stands in `input`: alone, in a header, or in the answer of `/authorize`.
fn token_in(input: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(input).ok()?.trim();
    if let Ok(Value::Object(answer)) = serde_json::from_str(text) {
        return Some(answer.get("token")?.as_str()?.to_owned());
    }
    let without = |text: &str, prefix: &str| {
        let found = text.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix));
        if found { text.get(prefix.len()..).map(|rest| rest.trim_start().to_owned()) } else { None }
    };
    let text = without(text, "authorization:").unwrap_or_else(|| text.to_owned());
    let token = without(&text, "bearer ").unwrap_or(text);
    // What cannot stand in the header cannot be sent.
    let sendable = !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic());
    sendable.then_some(token)
}

/// What a token is.
#[derive(Debug, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Report {
    Upload(Box<Jwt>),
    Receive(Composite),
}

impl Report {
    fn refused(&self) -> Option<&str> {
        match self {
            Report::Upload(jwt) => jwt.refused.as_deref(),
            Report::Receive(composite) => composite.refused.as_deref(),
        }
    }

    fn text(&self, now: SystemTime) -> String {
        let mut text = String::new();
        let lines = match self {
            Report::Upload(jwt) => jwt.lines(now),
            Report::Receive(composite) => composite.lines(),
        };
        for (name, value) in lines {
            let _ = writeln!(text, "{:<21}{}", format!("{name}:"), printable(&value));
        }
        text
    }
}

/// A token for `/upload`. What it says is shown as it says it, be it ever so wrong.
#[derive(Debug, Serialize)]
struct Jwt {
    algorithm: Value,
    signature: Signature,
    /// The file with the key that made the signature.
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    issuer: Value,
    audience: Value,
    subject: Value,
    cluster: Value,
    labels: Value,
    issued_at: Value,
    not_before: Value,
    expires_at: Value,
    /// Whether the gateway would take it now. Nobody knows without the key that made the signature.
    valid_now: Option<bool>,
    /// What the gateway would answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    refused: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Signature {
    /// One of the keys made it.
    Verified,
    /// None of them did.
    Wrong,
    /// There is no key, or nothing to be verified.
    NotVerified,
}

impl Jwt {
    /// Nothing, if its first two parts are not JSON objects.
    fn read(token: &str, keys: &Keys, partition_label: &str, now: SystemTime) -> Option<Self> {
        let mut parts = token.split('.').map(|part| object(&alphabet::URL_SAFE, part));
        let (header, mut claims) = (parts.next()??, parts.next()??);
        let claims_checked = match &keys.all {
            None => read_unverified(token, now),
            Some(verifier) => verifier.verify(token, now),
        };
        let key = keys.files.iter().find(|(_, verifier)| signed(&verifier.verify(token, now)));
        let signature = match (&claims_checked, &keys.all) {
            (checked, Some(_)) if signed(checked) => Signature::Verified,
            (Err(TokenError::Signature | TokenError::Algorithm), Some(_)) => Signature::Wrong,
            _ => Signature::NotVerified,
        };
        // Who it is, as the gateway asks; the verifier has said its word.
        let authorizer = TokenAuthorizer::new(TokenVerifier::new(Vec::new()), partition_label);
        let refused = match claims_checked {
            Err(error) => Some(answer(&Rejection::new(Reason::Unauthenticated, error.to_string()))),
            Ok(claims) => authorizer.identity(claims).err().map(|rejection| answer(&rejection)),
        };
        let mut claim = |name: &str| claims.remove(name).unwrap_or_default();
        let labels = claim("telemeter.openshift.io").get_mut("labels").map(Value::take).unwrap_or_default();
        Some(Jwt {
            algorithm: header.get("alg").cloned().unwrap_or_default(),
            signature,
            key: key.map(|(file, _)| file.clone()),
            issuer: claim("iss"),
            audience: claim("aud"),
            subject: claim("sub"),
            cluster: labels.get(partition_label).cloned().unwrap_or_default(),
            labels,
            issued_at: date(claim("iat")),
            not_before: date(claim("nbf")),
            expires_at: date(claim("exp")),
            valid_now: valid_now(refused.as_deref(), signature == Signature::Verified),
            refused,
        })
    }

    fn lines(&self, now: SystemTime) -> Vec<(&'static str, String)> {
        let signature = match (self.signature, &self.key) {
            (Signature::Verified, Some(key)) => format!("verified by {key}"),
            (Signature::Verified, None) => "verified".to_owned(),
            (Signature::Wrong, _) => "wrong: none of the keys that were given made it".to_owned(),
            (Signature::NotVerified, _) => "not verified".to_owned(),
        };
        let labels = match &self.labels {
            Value::Object(labels) => {
                labels.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(", ")
            }
            other => said(other),
        };
        let expires = match self.expires_at.as_str().and_then(|date| humantime::parse_rfc3339(date).ok()) {
            Some(at) => format!("{} ({})", said(&self.expires_at), distance(at, now)),
            None => said(&self.expires_at),
        };
        let valid = match (&self.refused, self.signature) {
            (Some(why), _) => format!("no: {why}"),
            (None, Signature::Verified) => "yes".to_owned(),
            (None, _) => "yes, if its signature is right: give --shared-key to verify it".to_owned(),
        };
        vec![
            ("kind", "upload, a JWT of /authorize".to_owned()),
            ("algorithm", said(&self.algorithm)),
            ("signature", signature),
            ("issuer", said(&self.issuer)),
            ("audience", said(&self.audience)),
            ("subject", said(&self.subject)),
            ("cluster", said(&self.cluster)),
            ("labels", labels),
            ("issued", said(&self.issued_at)),
            ("not before", said(&self.not_before)),
            ("expires", expires),
            ("valid now", valid),
        ]
    }
}

/// `Some` only if it is known: what is refused is not valid, and what is not is valid if its signature was `verified`.
fn valid_now(refused: Option<&str>, verified: bool) -> Option<bool> {
    if refused.is_some() { Some(false) } else { verified.then_some(true) }
}

/// The line that the gateway would answer.
fn answer(rejection: &Rejection) -> String {
    format!("{}: {}", rejection.reason(), rejection.detail())
}

/// Whether a key made the signature, be the claims what they may.
fn signed<T>(verified: &Result<T, TokenError>) -> bool {
    use TokenError::{Audience, Claims, Expired, Issuer, NotYetValid};
    matches!(verified, Ok(_) | Err(Claims | Issuer | Audience | Expired | NotYetValid))
}

/// The gateway's keys, each with its file.
struct Keys {
    files: Vec<(String, TokenVerifier)>,
    all: Option<TokenVerifier>,
}

impl Keys {
    fn read(files: Vec<String>) -> Result<Self, Failure> {
        let verifier = |file: String| Ok((file.clone(), keys(vec![file])?.verifier().clone()));
        let files = files.into_iter().filter(|file| !file.is_empty()).map(verifier);
        let files = files.collect::<Result<Vec<_>, Failure>>()?;
        let all = files.iter().flat_map(|(_, verifier)| verifier.keys().to_vec()).collect();
        let all = if files.is_empty() { None } else { Some(TokenVerifier::new(all)) };
        Ok(Keys { files, all })
    }
}

/// A token for `/metrics/v1/receive`.
#[derive(Debug, Serialize)]
struct Composite {
    cluster: Value,
    /// There only if it may be shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    authorization_token: Option<Value>,
    /// Names, or names and values if these may be shown.
    fields: Value,
    /// Whether the gateway would take it now: the authorizer says that it does, never this command.
    valid_now: Option<bool>,
    /// What the gateway would answer. What the authorizer says of the cluster's own token, only the authorizer knows.
    #[serde(skip_serializing_if = "Option::is_none")]
    refused: Option<String>,
}

impl Composite {
    /// Nothing, if it is not a JSON object.
    fn read(token: &str, show_secrets: bool) -> Option<Self> {
        let mut object = object(&alphabet::STANDARD, token)?;
        let request = Request::builder().header(header::AUTHORIZATION, format!("Bearer {token}")).body(()).ok()?;
        let refused = CompositeToken.credential(&request).err().map(|rejection| answer(&rejection));
        let cluster = object.remove("cluster_id").unwrap_or_default();
        let secret = object.remove("authorization_token").unwrap_or_default();
        let fields =
            if show_secrets { Value::Object(object) } else { object.into_iter().map(|(name, _)| name).collect() };
        Some(Composite {
            cluster,
            authorization_token: show_secrets.then_some(secret),
            fields,
            valid_now: valid_now(refused.as_deref(), false),
            refused,
        })
    }

    fn lines(&self) -> Vec<(&'static str, String)> {
        let secret = match &self.authorization_token {
            None => "hidden: --show-secrets shows it".to_owned(),
            Some(secret) => said(secret),
        };
        let fields = match &self.fields {
            Value::Object(fields) if fields.is_empty() => "none".to_owned(),
            Value::Object(fields) => {
                fields.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(", ")
            }
            names => said(names),
        };
        let valid = match &self.refused {
            Some(why) => format!("no: {why}"),
            None => "yes, if the authorizer grants it".to_owned(),
        };
        vec![
            ("kind", "receive, a composite of cluster and token".to_owned()),
            ("cluster", said(&self.cluster)),
            ("authorization token", secret),
            ("other fields", fields),
            ("valid now", valid),
        ]
    }
}

/// The JSON object that `text` encodes, padded or not. Of repeated keys the last one is shown.
fn object(alphabet: &alphabet::Alphabet, text: &str) -> Option<Map<String, Value>> {
    let lenient = GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true);
    let json = GeneralPurpose::new(alphabet, lenient).decode(text).ok()?;
    serde_json::from_slice(&json).ok()
}

/// A `NumericDate` (RFC 7519, section 2) as RFC 3339 in whole seconds, or what stands there instead.
fn date(claim: Value) -> Value {
    /// The last second that RFC 3339 can spell.
    const LAST: f64 = 253_402_300_799.0;
    match claim.as_f64() {
        Some(seconds) if (0.0..=LAST).contains(&seconds) => {
            humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(seconds as u64)).to_string().into()
        }
        _ => claim,
    }
}

/// How far `date` is from `now`.
fn distance(date: SystemTime, now: SystemTime) -> String {
    let rounded = |duration: Duration| humantime::format_duration(Duration::from_secs(duration.as_secs()));
    match date.duration_since(now) {
        Ok(left) => format!("in {}", rounded(left)),
        Err(past) => format!("{} ago", rounded(past.duration())),
    }
}

/// A value as people read it.
fn said(value: &Value) -> String {
    match value {
        Value::Null => "none".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(values) if values.is_empty() => "none".to_owned(),
        Value::Array(values) if values.iter().all(Value::is_string) => {
            values.iter().map(said).collect::<Vec<_>>().join(", ")
        }
        other => other.to_string(),
    }
}

/// `text` in which nothing moves a terminal's cursor, or turns its text around.
fn printable(text: &str) -> String {
    let escape = |c: char| match c {
        // These need no escape.
        '"' | '\'' | '\\' => c.to_string(),
        c => c.escape_debug().to_string(),
    };
    text.chars().map(escape).collect()
}

#[cfg(test)]
mod tests {
    use infogw_layers::authorize::jwt::{SigningKey, TokenSigner};
    use serde_json::json;

    use super::*;

    #[test]
    fn dates_are_shown_whatever_they_are() {
        for (claim, shown) in [
            (json!(0), json!("1970-01-01T00:00:00Z")),
            (json!(1_800_000_000.9), json!("2027-01-15T08:00:00Z")),
            (json!(253_402_300_799_u64), json!("9999-12-31T23:59:59Z")),
            (json!(253_402_300_800_u64), json!(253_402_300_800_u64)),
            (json!(-1), json!(-1)),
            (json!(1e300), json!(1e300)),
            (json!("1"), json!("1")),
            (Value::Null, Value::Null),
        ] {
            assert_eq!(date(claim), shown);
        }
    }

    #[test]
    fn nothing_that_is_printed_moves_the_cursor() {
        assert_eq!(printable("a\u{1b}[2J\u{202e}b\n\u{9b}"), "a\\u{1b}[2J\\u{202e}b\\n\\u{9b}");
        assert_eq!(printable(r#"größe="it's \n""#), r#"größe="it's \n""#);
    }

    #[test]
    fn a_token_is_found_where_people_have_it() {
        for input in [
            "abc",
            " abc\n",
            "Bearer abc",
            "bearer  abc",
            "Authorization: Bearer abc",
            r#"{"version":1,"token":"abc"}"#,
        ] {
            assert_eq!(token_in(input.as_bytes()).as_deref(), Some("abc"), "{input}");
        }
        for input in ["", " \n", "a b", "ü", "{}", r#"{"token":7}"#] {
            assert_eq!(token_in(input.as_bytes()), None, "{input}");
        }
        assert_eq!(token_in(b"\xff"), None);
    }

    /// Anything at all may be piped in.
    #[test]
    fn no_input_is_a_panic() {
        let key = SigningKey::generate().unwrap();
        let verifier = TokenVerifier::new(vec![key.verifying_key()]);
        let keys = Keys { files: vec![("k".into(), verifier.clone())], all: Some(verifier) };
        let labels = [("_id".to_owned(), "c1".to_owned())].into();
        let now = SystemTime::now();
        let jwt = TokenSigner::new(key).sign("a", &labels, Duration::from_secs(60), now).unwrap();
        let composite = GeneralPurpose::new(&alphabet::STANDARD, GeneralPurposeConfig::new())
            .encode(r#"{"authorization_token":"s3cret","cluster_id":"c1","more":{"a":[1,2]}}"#);
        let mut random = fastrand::Rng::with_seed(7);
        let (mut shown, mut refused) = (0, 0);
        for good in [jwt, composite] {
            for round in 0..4000 {
                let mut bytes = good.clone().into_bytes();
                for _ in 0..round % 4 {
                    let at = random.usize(..bytes.len());
                    match random.u8(..4) {
                        0 => bytes[at] = random.u8(..),
                        1 => bytes[at] = b"ABCdef012.-_+/=\n "[random.usize(..17)],
                        2 => bytes.truncate(at.max(1)),
                        _ => bytes.insert(at, b'.'),
                    }
                }
                let Some(token) = token_in(&bytes) else { continue };
                let report = match token.contains('.') {
                    true => Jwt::read(&token, &keys, "_id", now).map(|jwt| Report::Upload(Box::new(jwt))),
                    false => Composite::read(&token, false).map(Report::Receive),
                };
                if let Some(report) = report {
                    let text = report.text(now);
                    assert!(
                        !text.contains("s3cret") && !text.contains(|c: char| c.is_control() && c != '\n'),
                        "{text}"
                    );
                    assert_eq!(text.lines().count(), if token.contains('.') { 12 } else { 5 }, "{text}");
                    shown += 1;
                    refused += usize::from(report.refused().is_some());
                }
            }
        }
        assert!(refused > 200 && shown > refused + 1000, "{refused} of {shown}");
    }
}
