use std::io;

use http::HeaderValue;
use tokio::time::{Duration, Instant};

use super::{ClientSecret, Token, Tokens};
use crate::rejection::{Reason, Rejection};

/// The longest that a token is said to live: what a file holds may be renewed at any time, and is read for each request.
const FOR_NOW: Duration = Duration::from_secs(60);

/// A token that somebody else renews, such as that of a Kubernetes service account: given as it is, or in a file that is read for each
/// request.
#[derive(Debug, Clone)]
pub struct KeptToken {
    token: ClientSecret,
    what: &'static str,
}

impl KeptToken {
    /// Shows `token`. `what` names it where it cannot be read, such as the flag that gives it.
    pub fn new(token: ClientSecret, what: &'static str) -> Self {
        KeptToken { token, what }
    }

    async fn read(&self) -> Result<HeaderValue, Rejection> {
        let wrong = |why: &dyn std::fmt::Display| {
            Rejection::new(Reason::CredentialsUnavailable, format!("{}: {why}", self.what))
        };
        let token = self.token.read().await.map_err(|error| match &self.token {
            ClientSecret::File(path) => wrong(&format_args!("{}: {error}", path.display())),
            ClientSecret::Value(_) => wrong(&error),
        })?;
        bearer(token.trim()).map_err(|error| wrong(&error))
    }
}

/// `Bearer` and the token, marked as sensitive.
pub(crate) fn bearer(token: &str) -> io::Result<HeaderValue> {
    let value = HeaderValue::from_str(&format!("Bearer {token}"));
    let mut value = value.map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it cannot stand in a header"))?;
    value.set_sensitive(true);
    Ok(value)
}

impl Tokens for KeptToken {
    async fn token(&self) -> Result<Token, Rejection> {
        Ok(Token::new(0, self.read().await?, Instant::now() + FOR_NOW))
    }

    /// What is there now, if that is another one.
    async fn replace(&self, refused: &Token) -> Result<Option<Token>, Rejection> {
        let now = self.token().await?;
        Ok(Some(now).filter(|now| now.authorization() != refused.authorization()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_is_read_each_time() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let kept = KeptToken::new(ClientSecret::File(file.path().to_owned()), "--token-file");
        let rejection = kept.token().await.unwrap_err();
        assert_eq!(rejection.reason(), Reason::CredentialsUnavailable);
        assert_eq!(rejection.detail(), format!("--token-file: {}: it is empty", file.path().display()));
        std::fs::write(file.path(), " one\n").unwrap();
        let one = kept.token().await.unwrap();
        assert_eq!(one.authorization(), "Bearer one");
        assert!(kept.replace(&one).await.unwrap().is_none());
        std::fs::write(file.path(), "two").unwrap();
        assert_eq!(kept.replace(&one).await.unwrap().unwrap().authorization(), "Bearer two");
        std::fs::write(file.path(), "t\nwo").unwrap();
        assert!(kept.token().await.unwrap_err().detail().ends_with("it cannot stand in a header"));
    }
}
