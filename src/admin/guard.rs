//! Who may change the state of this process: anyone on its host, or whoever has the token.

use std::{net::IpAddr, path::PathBuf};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use http::{HeaderMap, StatusCode, header};

/// Guards the endpoints that change something. The internal listener may be reachable by others: shipped manifests bind it to all
/// interfaces.
#[derive(Debug, Clone)]
pub struct Guard {
    /// Holds the token. Read each time, so that it may be rotated.
    token_file: Option<PathBuf>,
    /// What others are told where there is none.
    this_host_alone: &'static str,
}

/// Why somebody is not let in.
pub(super) struct Refused {
    pub(super) status: StatusCode,
    pub(super) line: &'static str,
}

impl Guard {
    /// Lets in whoever shows the token that `token_file` holds as a bearer token; without one, whoever is on this host.
    pub fn new(token_file: Option<PathBuf>) -> Self {
        let this_host_alone =
            "this is for this host alone; to call it from elsewhere, set --internal-token-file and show that token\n";
        Guard { token_file, this_host_alone }
    }

    /// Lets in whoever is on this host, and nobody else.
    pub fn this_host() -> Self {
        Guard { token_file: None, this_host_alone: "this is for this host alone\n" }
    }

    pub(super) async fn check(&self, peer: IpAddr, headers: &HeaderMap) -> Result<(), Refused> {
        let Some(file) = self.token_file.clone() else {
            return match peer.to_canonical().is_loopback() {
                true => Ok(()),
                false => Err(Refused { status: StatusCode::FORBIDDEN, line: self.this_host_alone }),
            };
        };
        let read =
            tokio::task::spawn_blocking(move || std::fs::read(file)).await.map_err(std::io::Error::other).flatten();
        let token = read.inspect_err(|error| tracing::warn!(%error, "--internal-token-file cannot be read")).ok();
        let Some(token) = token.as_deref().map(<[u8]>::trim_ascii).filter(|token| !token.is_empty()) else {
            let line = "--internal-token-file cannot be read or is empty: nobody is let in\n";
            return Err(Refused { status: StatusCode::INTERNAL_SERVER_ERROR, line });
        };
        match bearer(headers).map(|shown| verify_slices_are_equal(shown, token)) {
            Some(Ok(())) => Ok(()),
            _ => Err(Refused {
                status: StatusCode::UNAUTHORIZED,
                line: "show the token of --internal-token-file as `Authorization: Bearer TOKEN`\n",
            }),
        }
    }
}

fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, token) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| token.trim_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    async fn status(guard: &Guard, peer: &str, authorization: Option<&str>) -> u16 {
        let headers = authorization.iter().map(|value| (header::AUTHORIZATION, value.parse().unwrap())).collect();
        guard.check(peer.parse().unwrap(), &headers).await.map_or_else(|refused| refused.status.as_u16(), |()| 200)
    }

    #[tokio::test]
    async fn without_a_token_this_host_alone_is_let_in() {
        let guard = Guard::new(None);
        for (peer, expected) in [
            ("127.0.0.1", 200),
            ("127.9.9.9", 200),
            ("::1", 200),
            ("::ffff:127.0.0.1", 200),
            ("192.0.2.1", 403),
            ("::ffff:192.0.2.1", 403),
            ("2001:db8::1", 403),
        ] {
            assert_eq!(status(&guard, peer, Some("Bearer token")).await, expected, "{peer}");
        }
    }

    #[tokio::test]
    async fn with_a_token_whoever_shows_it_is() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let guard = Guard::new(Some(file.path().to_owned()));
        assert_eq!(status(&guard, "127.0.0.1", Some("Bearer ")).await, 500, "the file is empty");
        writeln!(file, "s3cret").unwrap();
        for (authorization, expected) in [
            (None, 401),
            (Some("Bearer s3cret"), 200),
            (Some("bearer  s3cret "), 200),
            (Some("Bearer s3cre"), 401),
            (Some("Bearer s3cret2"), 401),
            (Some("Bearer"), 401),
            (Some("Basic s3cret"), 401),
            (Some("s3cret"), 401),
        ] {
            for peer in ["127.0.0.1", "192.0.2.1"] {
                assert_eq!(status(&guard, peer, authorization).await, expected, "{authorization:?}");
            }
        }
        std::fs::write(file.path(), "other").unwrap();
        assert_eq!(status(&guard, "192.0.2.1", Some("Bearer s3cret")).await, 401, "it was rotated");
        drop(file);
        assert_eq!(status(&guard, "127.0.0.1", Some("Bearer other")).await, 500);
    }
}
