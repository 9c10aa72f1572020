//! What a Prometheus gives now.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Uri, header};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use infogw_layers::rejection::repeats;

use super::{
    super::{Exit, Failure, read},
    LARGEST_INPUT,
};
use crate::{
    client::{self, CONNECT},
    config::{given, tls_to},
    scrape::{asking_for, shown},
};

/// The whole of it has this time. A federation of everything takes a while.
const PATIENCE: Duration = Duration::from_secs(60);
/// The longest token, in bytes.
const LONGEST_TOKEN: u64 = 32 * 1024;

/// The text at `url`.
///
/// # Errors
/// A token or authority that cannot be read; a server that cannot be reached, or gives something else.
pub(super) async fn text(
    url: &Uri,
    matches: &[String],
    token_file: Option<String>,
    ca_file: Option<String>,
) -> Result<Vec<u8>, Failure> {
    let matches = matches.iter().filter(|selector| !selector.is_empty());
    let url = asking_for(url, matches)
        .map_err(|error| Failure::new(Exit::Usage, format_args!("--match: {error}; use fewer or shorter ones")))?;
    let url = &url;
    let tls = tls_to(("--from", url), "--from-ca-file", ca_file)?;
    let client = client::client(&tls, Some(url), CONNECT).map_err(|error| Failure::new(Exit::Unavailable, error))?;
    let mut request = Request::new(Full::new(Bytes::new()));
    *request.uri_mut() = url.clone();
    let headers = request.headers_mut();
    headers.insert(header::ACCEPT, HeaderValue::from_static("text/plain;version=0.0.4"));
    let token = given(token_file).map(|file| bearer(&file)).transpose()?;
    headers.extend(token.clone().map(|token| (header::AUTHORIZATION, token)));
    let shown = &shown(url);
    let failed = |why: &dyn std::fmt::Display| Failure::new(Exit::Unavailable, format_args!("--from: {shown}: {why}"));
    let wrong = |why: &dyn std::fmt::Display| Failure::new(Exit::Data, format_args!("--from: {shown}: {why}"));
    let fetched = async {
        let response = client.request(request).await.map_err(|error| failed(&client::chain(&error)))?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, LARGEST_INPUT).collect().await.map_err(|error| {
            match error.is::<LengthLimitError>() {
                true => wrong(&format_args!("over {LARGEST_INPUT} bytes; ask for less with --match")),
                false => failed(&client::chain(&*error)),
            }
        })?;
        let body = body.to_bytes();
        if !head.status.is_success() {
            let said = String::from_utf8_lossy(&body);
            let said: String = said.lines().next().unwrap_or_default().chars().take(200).collect();
            // Some servers quote what they were sent.
            let shown = token.as_ref().and_then(|token| token.to_str().ok()?.strip_prefix("Bearer "));
            if shown.is_some_and(|token| repeats(&said, token)) {
                return Err(failed(&format_args!("answered {}, in words that hold the token", head.status)));
            }
            return Err(failed(&format_args!("answered {}: {said}", head.status)));
        }
        let content_type = head.headers.get(header::CONTENT_TYPE).map_or(&b"text/plain"[..], HeaderValue::as_bytes);
        if !content_type.starts_with(b"text/plain") {
            let content_type = String::from_utf8_lossy(content_type);
            return Err(wrong(&format_args!("answered with `{content_type}`, and not with the text format")));
        }
        if let Some(encoding) = head.headers.get(header::CONTENT_ENCODING).filter(|value| *value != "identity") {
            let encoding = String::from_utf8_lossy(encoding.as_bytes());
            return Err(wrong(&format_args!("answered with Content-Encoding `{encoding}`, which nobody asked for")));
        }
        Ok(body.into())
    };
    tokio::time::timeout(PATIENCE, fetched)
        .await
        .unwrap_or_else(|_| Err(failed(&format_args!("no whole answer within {} s", PATIENCE.as_secs()))))
}

fn bearer(file: &str) -> Result<HeaderValue, Failure> {
    let token = read(file, LONGEST_TOKEN)?;
    let value = [b"Bearer ", token.trim_ascii()].concat();
    match HeaderValue::from_bytes(&value) {
        Ok(mut value) if !token.trim_ascii().is_empty() => {
            value.set_sensitive(true);
            Ok(value)
        }
        _ => Err(Failure::new(Exit::Data, format_args!("--from-token-file: {file} holds no token"))),
    }
}
