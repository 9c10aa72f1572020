//! `infogw-proxy completions`: what a shell needs to complete its command line.

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use super::{CommandLine, Exit, Failure, print};

/// Arguments of `completions`.
#[derive(Debug, Clone, Args)]
pub struct CompletionsArgs {
    /// Shell to complete in.
    #[arg(value_enum)]
    shell: Shell,
}

/// Prints the script.
///
/// # Errors
/// [`Exit::Unavailable`], if it cannot be written.
pub fn run(args: &CompletionsArgs) -> Result<Exit, Failure> {
    let mut script = Vec::new();
    // To memory: written straight to a pipe that closes, it would panic.
    clap_complete::generate(args.shell, &mut CommandLine::command(), "infogw-proxy", &mut script);
    let script = String::from_utf8_lossy(&script);
    // For bash it spells a name with a hyphen in two ways, so that nothing after a command completes (clap-rs/clap#6421).
    print(&script.replace("infogw__subcmd__proxy", "infogw__proxy"))?;
    Ok(Exit::Done)
}
