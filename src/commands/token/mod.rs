//! `infogw-proxy token`: makes and reads both kinds of token.
//!
//! | kind | endpoint | what it is |
//! | --- | --- | --- |
//! | `upload` | `/upload` | a JWT that `/authorize` issued |
//! | `receive` | `/metrics/v1/receive` | base64 of `{"authorization_token","cluster_id"}`, put together by the sender |

mod make;
mod read;

use clap::Subcommand;

use super::{Exit, Failure};

const REFUSED: (Exit, &str) = (Exit::Negative, "the gateway would refuse the token");
const UNREADABLE: (Exit, &str) = (Exit::NoInput, "a file cannot be read");

/// What to do with a token.
#[derive(Debug, Clone, Subcommand)]
pub enum TokenCommand {
    /// Prints the token for /upload that /authorize would issue.
    #[command(after_help = Exit::help(&[(Exit::Data, "a file holds no key"), UNREADABLE]))]
    Upload(make::UploadArgs),
    /// Prints the token for /metrics/v1/receive that a sender puts together: base64 of {"authorization_token","cluster_id"}.
    #[command(after_help = Exit::help(&[(Exit::Data, "the file holds no token"), UNREADABLE]))]
    Receive(make::ReceiveArgs),
    /// Says what kind a token is of, what it says, and whether the gateway would take it.
    #[command(after_help = Exit::help(&[REFUSED, (Exit::Data, "the file holds no token, or one of the keys no key"), UNREADABLE]))]
    Read(read::ReadArgs),
}

/// Does that.
///
/// # Errors
/// [`Failure`], if there is no token to print, or none to read.
pub fn run(command: TokenCommand) -> Result<Exit, Failure> {
    match command {
        TokenCommand::Upload(args) => make::upload(args),
        TokenCommand::Receive(args) => make::receive(args),
        TokenCommand::Read(args) => read::run(args),
    }
}
