//! `infogw-proxy token upload` and `infogw-proxy token receive`.

use std::{collections::BTreeMap, convert::Infallible, ffi::OsString, path::PathBuf, time::Duration};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use clap::Args;
use http::{Request, header};
use infogw_layers::{
    authorize::{ClusterId, CompositeToken, CredentialSource as _, Secret},
    clock::{Clock as _, SystemClock},
};
use serde_json::{Map, Value};

use super::super::{Exit, Failure, print, read};
use crate::{
    config::{given, label_name, number, pairs, path},
    keys::{Keyring, KeyringError},
};

/// The longest token of a cluster that is read, in bytes.
const LONGEST_SECRET: u64 = 32 * 1024;

/// Flags of `token upload`.
#[derive(Debug, Clone, Args)]
pub struct UploadArgs {
    /// Private key that signs the token, as the gateway has it; the first one if it is repeated.
    #[arg(long, value_name = "FILE", required = true)]
    shared_key: Vec<String>,
    /// Cluster that may write with the token.
    #[arg(long, value_name = "ID")]
    cluster: String,
    /// Account that the cluster belongs to.
    #[arg(long, value_name = "ID")]
    account: String,
    /// Label that carries the cluster id, as the gateway has it [default: _id].
    #[arg(long, value_name = "NAME")]
    partition_label: Option<String>,
    /// Label that must be on uploaded series, name=value, as --required-label or the policy file has it; repeatable, comma-separated.
    #[arg(long, value_name = "NAME=VALUE")]
    label: Vec<String>,
    /// Life of the token [default: 86400].
    #[arg(long, value_name = "SECONDS")]
    expires_in_seconds: Option<String>,
}

/// Flags of `token receive`.
#[derive(Debug, Clone, Args)]
pub struct ReceiveArgs {
    /// Cluster that sends remote write.
    #[arg(long, value_name = "ID")]
    cluster: String,
    /// File with the token that the cluster proves itself with to the authorizer; `-` is stdin.
    #[arg(long, value_name = "FILE")]
    token_file: Option<String>,
    /// The token itself, which whoever lists the machine's processes can see, so that --token-file or $INFOGW_TOKEN is better; `-`
    /// reads it from stdin.
    #[arg(long, value_name = "TOKEN", value_parser = secret, allow_hyphen_values = true)]
    token: Option<Secret>,
    /// Another field of the JSON, such as the gateway's --tenant-key, key=value; repeatable.
    #[arg(long, value_name = "KEY=VALUE")]
    field: Vec<String>,
}

fn secret(value: &str) -> Result<Secret, Infallible> {
    Ok(Secret::new(value))
}

pub(super) fn upload(args: UploadArgs) -> Result<Exit, Failure> {
    let cluster = cluster(&args.cluster)?;
    if args.account.is_empty() {
        return Err(Failure::new(Exit::Usage, "--account: the account has an id"));
    }
    let partition_label =
        label_name("--partition-label", given(args.partition_label).unwrap_or_else(|| "_id".to_owned()))?;
    let mut labels: BTreeMap<_, _> = pairs("--label", &args.label)?.into_iter().collect();
    // As the gateway says it of --required-label.
    if let Some((name, _)) = labels.iter().find(|(_, value)| value.is_empty()) {
        let why = format!("--label: `{name}` has no value, and no series could carry it");
        return Err(Failure::new(Exit::Usage, why));
    }
    if labels.insert(partition_label.clone(), cluster.to_string()).is_some() {
        let why = format!("--label: `{partition_label}` is the --partition-label, which carries the --cluster anyway");
        return Err(Failure::new(Exit::Usage, why));
    }
    let lifetime = number("--expires-in-seconds", args.expires_in_seconds, 86_400)? as u64;
    if lifetime == 0 || lifetime > 10 * 365 * 86_400 {
        return Err(Failure::new(Exit::Usage, "--expires-in-seconds: a token lives 1 second to 10 years"));
    }
    let keys = keys(args.shared_key)?;
    let token = keys.signer().sign(&args.account, &labels, Duration::from_secs(lifetime), SystemClock.now());
    let token = token.map_err(|error| Failure::new(Exit::Usage, error))?;
    print(&format!("{token}\n"))?;
    Ok(Exit::Done)
}

/// The keys in `files`, of which the first one signs. Other than the gateway's flag, no file is no generated key.
pub(super) fn keys(files: Vec<String>) -> Result<Keyring, Failure> {
    let files = files.into_iter().map(|file| path("--shared-key", Some(file)));
    let files: Vec<_> = files.collect::<Result<Vec<_>, _>>()?.into_iter().flatten().map(PathBuf::from).collect();
    if files.is_empty() {
        return Err(Failure::new(Exit::Usage, "--shared-key is required: the file with the gateway's key"));
    }
    Keyring::new(files).map_err(|error| {
        let exit = match error {
            KeyringError::File { .. } => Exit::NoInput,
            _ => Exit::Data,
        };
        Failure::new(exit, format_args!("--shared-key: {error}"))
    })
}

pub(super) fn receive(args: ReceiveArgs) -> Result<Exit, Failure> {
    let cluster = cluster(&args.cluster)?;
    let mut object = Map::new();
    for field in &args.field {
        let (key, value) = match field.split_once('=') {
            Some((key, value)) if !key.is_empty() => (key, value),
            // It may be a secret whose key was forgotten.
            _ => return Err(Failure::new(Exit::Usage, "--field: not key=value")),
        };
        // Readers that fold case must not see another cluster in it.
        let folds = |to: &str| key.eq_ignore_ascii_case(to);
        if !key.is_ascii() || folds("cluster_id") || folds("authorization_token") {
            let why = "is not plain ASCII, or one of the token's own: authorization_token, cluster_id";
            return Err(Failure::new(Exit::Usage, format_args!("--field: the key `{key}` {why}")));
        }
        if object.insert(key.to_owned(), value.into()).is_some() {
            return Err(Failure::new(Exit::Usage, format_args!("--field: `{key}` is given twice")));
        }
    }
    let token = cluster_token(args.token_file, args.token, std::env::var_os("INFOGW_TOKEN"))?;
    object.insert("authorization_token".to_owned(), token.expose().into());
    object.insert("cluster_id".to_owned(), cluster.as_str().into());
    let composite = BASE64_STANDARD.encode(Value::Object(object).to_string());
    // What is printed is what the gateway reads.
    let request = Request::builder().header(header::AUTHORIZATION, format!("Bearer {composite}")).body(());
    let request = request.map_err(|error| Failure::new(Exit::Usage, error))?;
    CompositeToken.credential(&request).map_err(|refused| Failure::new(Exit::Usage, refused.detail()))?;
    print(&format!("{composite}\n"))?;
    Ok(Exit::Done)
}

fn cluster(id: &str) -> Result<ClusterId, Failure> {
    ClusterId::new(id).map_err(|error| Failure::new(Exit::Usage, format_args!("--cluster: {error}")))
}

/// What the cluster proves itself with. No message holds any of it.
fn cluster_token(file: Option<String>, token: Option<Secret>, variable: Option<OsString>) -> Result<Secret, Failure> {
    let variable = variable.filter(|token| !token.is_empty());
    let token = token.filter(|token| !token.expose().is_empty());
    let (name, data) = match (given(file), token) {
        (Some(_), Some(_)) => {
            return Err(Failure::new(Exit::Usage, "--token-file and --token exclude each other; give one of them"));
        }
        (None, None) => match variable {
            Some(token) => ("INFOGW_TOKEN", token.into_encoded_bytes()),
            None => {
                let why = "--token-file is required: the file with the cluster's token; `-` is stdin";
                return Err(Failure::new(Exit::Usage, why));
            }
        },
        (Some(path), None) => ("--token-file", read(&path, LONGEST_SECRET)?),
        (None, Some(token)) if token.expose() == "-" => ("--token", read("-", LONGEST_SECRET)?),
        (None, Some(token)) => ("--token", token.expose().as_bytes().to_vec()),
    };
    // Files end with a line break.
    match String::from_utf8(data).as_deref().map(str::trim) {
        Ok("") => Err(Failure::new(Exit::Data, format_args!("{name}: holds no token"))),
        Ok(token) if !token.contains(|c: char| c.is_control() || c.is_whitespace()) => Ok(Secret::new(token)),
        _ => Err(Failure::new(Exit::Data, format_args!("{name}: holds more than a token: give one word of text"))),
    }
}
