//! The command line: a gateway, unless a command is named.
//!
//! A command is one file here with its clap `Args` and a `run` that takes them. What it found goes to stdout, by [`print()`]; why it found
//! nothing is one line on stderr, a [`Failure`]. How either ends the process is an [`Exit`].
//!
//! No flag of the gateway's goes before a command. One that needs them flattens [`Flags`] into its own `Args`, and takes them
//! after its name, as the gateway does.

pub mod check;
pub mod completions;
pub mod explain;
pub mod federate;
pub mod token;

use std::{
    fs::File,
    io::{self, Read, Write as _},
};

use clap::{
    CommandFactory as _, Parser, Subcommand,
    error::{ContextKind, ContextValue, ErrorKind},
};

use infogw_layers::rejection::Rejection;

use crate::{
    config::{ConfigError, Flags},
    federate::FederateFlags,
    gateway::StartError,
};

/// A gateway for pushed metrics, in telemeter-server's place.
///
/// Authorizes clusters, limits how often they write, checks and filters what they send, and forwards it as remote write.
#[derive(Debug, Parser)]
#[command(
    name = "infogw-proxy",
    version,
    args_conflicts_with_subcommands = true,
    args_override_self = true,
    after_help = Exit::help(&[Exit::USAGE_WITH_FILES])
)]
pub struct CommandLine {
    /// What to do instead.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// What the gateway shall be like.
    #[command(flatten)]
    pub flags: Flags,
}

/// What it can do besides being a gateway.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Starts a gateway with an authorizer, a receive endpoint and clusters that push, all in this process: to look at and to try.
    #[command(after_help = Exit::help(&[]))]
    Dev,
    /// Prints what flags and policy file come to, takes the gateway's flags for that, and warns of what in them is seldom meant.
    #[command(after_help = check::exit_codes())]
    Check(Box<check::CheckArgs>),
    /// Says of series what the policy makes of each: kept or dropped, by which rule, with which labels; and what their sender would hear.
    #[command(after_help = Exit::help(&explain::EXITS))]
    Explain(Box<explain::ExplainArgs>),
    /// Pushes a selection of a Prometheus' metrics to a gateway, in telemeter-client's place, or to a receive endpoint.
    #[command(after_help = Exit::help(&federate::EXITS))]
    Federate(Box<FederateFlags>),
    /// Makes and reads the tokens of /upload and /metrics/v1/receive.
    #[command(subcommand, arg_required_else_help = false, after_help = Exit::help(&[]))]
    Token(token::TokenCommand),
    /// Prints a script that completes this command line in a shell.
    #[command(after_help = Exit::help(&[]))]
    Completions(completions::CompletionsArgs),
}

impl CommandLine {
    /// Reads the process's arguments.
    ///
    /// # Errors
    /// [`Exit::Usage`]. A request for help or the version is answered here, and ends as [`Exit::Done`]: then there is no line to tell.
    pub fn read() -> Result<Self, Failure> {
        CommandLine::try_parse().map_err(|error| {
            if error.use_stderr() {
                return Failure { exit: Exit::Usage, line: line(&error) };
            }
            // Nobody may be reading.
            let _ = error.print();
            Failure { exit: Exit::Done, line: String::new() }
        })
    }
}

/// How the process ends: by a code of `sysexits.h`, or by 0 or 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// All went well.
    Done = 0,
    /// The command did its work, and what it found is what it is there to warn of.
    Negative = 1,
    /// A wrong flag of the gateway's, or file that it names; a wrong flag of a command's (`EX_USAGE`).
    Usage = 64,
    /// Input that does not read as what it should be (`EX_DATAERR`).
    Data = 65,
    /// A command's own input that is not there (`EX_NOINPUT`).
    NoInput = 66,
    /// Something that is needed is not to be had (`EX_UNAVAILABLE`).
    Unavailable = 69,
}

impl Exit {
    /// The code that the process ends with.
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// Of the gateway's flags: what files they name is read as they are, and is wrong as they are.
    pub const USAGE_WITH_FILES: (Exit, &str) = (Exit::Usage, "a flag, or a file that it names, is wrong");

    /// The end of a command's `--help`: the codes that every command has, and its `own`, which may be one of these told otherwise.
    pub fn help(own: &[(Exit, &str)]) -> String {
        let common = [
            (Exit::Done, "done"),
            (Exit::Usage, "a flag is wrong"),
            (Exit::Unavailable, "something that is needed is not to be had"),
        ];
        let common = common.iter().filter(|(exit, _)| own.iter().all(|(other, _)| other != exit));
        let mut codes: Vec<_> = common.chain(own).map(|(exit, when)| (exit.code(), when)).collect();
        codes.sort_unstable();
        let lines: Vec<_> = codes.iter().map(|(code, when)| format!("  {code:<4}{when}")).collect();
        format!("Exit codes:\n{}", lines.join("\n"))
    }
}

/// What ends the process early: how, and one line that says why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    exit: Exit,
    line: String,
}

impl Failure {
    /// Ends as `exit` for this reason.
    pub fn new(exit: Exit, why: impl std::fmt::Display) -> Self {
        Failure { exit, line: format!("error: {why}") }
    }

    /// Says on stderr why, if anybody reads it, and how to end.
    pub fn tell(&self) -> Exit {
        if !self.line.is_empty() {
            // A flag's value may hold line breaks, and is quoted as it is.
            let _ = writeln!(io::stderr(), "{}", self.line.replace(char::is_control, " "));
        }
        self.exit
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Failure::new(Exit::Usage, error)
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        Failure::new(Exit::Unavailable, error)
    }
}

/// What refuses data is told from what is not to be had.
impl From<Rejection> for Failure {
    fn from(rejection: Rejection) -> Self {
        let exit = if rejection.status().is_client_error() { Exit::Data } else { Exit::Unavailable };
        Failure::new(exit, rejection)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Failure::new(Exit::Unavailable, error)
    }
}

/// Writes `text` to stdout. That nobody reads it any more, as behind `| head`, is no failure.
///
/// # Errors
/// [`Exit::Unavailable`], if it cannot be written.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::new(Exit::Unavailable, format_args!("stdout: {error}")))
        }
        _ => Ok(()),
    }
}

/// The whole of the file at `path`, or of stdin where that is `-`.
///
/// # Errors
/// [`Exit::NoInput`] if it cannot be read, [`Exit::Data`] if it is over `at_most` bytes.
pub fn read(path: &str, at_most: u64) -> Result<Vec<u8>, Failure> {
    let (name, mut data) = (if path == "-" { "stdin" } else { path }, Vec::new());
    let read = match path {
        "-" => io::stdin().lock().take(at_most + 1).read_to_end(&mut data),
        path => File::open(path).and_then(|file| file.take(at_most + 1).read_to_end(&mut data)),
    };
    match read {
        Err(error) => Err(Failure::new(Exit::NoInput, format_args!("{name}: {error}"))),
        Ok(read) if read as u64 > at_most => {
            Err(Failure::new(Exit::Data, format_args!("{name}: over {at_most} bytes")))
        }
        Ok(_) => Ok(data),
    }
}

/// Clap explains itself over several lines; the first ones say what is wrong.
fn line(error: &clap::Error) -> String {
    // After a flag clap takes any argument for a subcommand.
    if let (ErrorKind::ArgumentConflict, Some(ContextValue::String(argument))) =
        (error.kind(), error.get(ContextKind::InvalidSubcommand))
        && is_like_a_flag(argument)
        && CommandLine::command().find_subcommand(argument).is_none()
    {
        return format!("error: unexpected argument '{argument}' found");
    }
    let unexpected = match error.kind() {
        ErrorKind::UnknownArgument => error.get(ContextKind::InvalidArg),
        ErrorKind::InvalidSubcommand | ErrorKind::ArgumentConflict => error.get(ContextKind::InvalidSubcommand),
        _ => None,
    };
    if matches!(unexpected, Some(ContextValue::String(argument)) if !is_like_a_flag(argument)) {
        return "error: unexpected argument found; it is not shown, for it may be a secret".to_owned();
    }
    let text = error.to_string();
    let mut lines = text.lines().map(str::trim);
    let first = lines.next().unwrap_or_default();
    // What directly follows is what is missing, or what there is to choose from; a blank line parts it from advice.
    let rest: Vec<_> = lines.take_while(|line| !line.is_empty()).collect();
    format!("{first} {}", rest.join(", ")).trim_end().to_owned()
}

/// Whether it is short and plain, like the names of flags and commands. Whatever is not may be the value of a flag that was lost.
fn is_like_a_flag(argument: &str) -> bool {
    argument.len() <= 40 && argument.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
}

#[cfg(test)]
mod tests {
    use clap::{Args, FromArgMatches as _};

    use super::*;

    /// A command that takes the gateway's flags beside its own.
    #[derive(Debug, Args)]
    struct WithFlags {
        #[arg(long)]
        own: Option<String>,
        #[command(flatten)]
        flags: Flags,
    }

    #[test]
    fn a_command_takes_the_gateways_flags_after_its_name() {
        let parse = |args: &[&str]| {
            let with_flags = WithFlags::augment_args(clap::Command::new("with-flags"));
            CommandLine::command().subcommand(with_flags).try_get_matches_from([&["infogw-proxy"], args].concat())
        };
        let line =
            ["with-flags", "--listen=a", "--own", "x", "--forward-url=u", "--listen=b", "--label=c", "--label=d", "-v"];
        let matches = parse(&line).unwrap();
        let (name, matches) = matches.subcommand().unwrap();
        let WithFlags { own, flags } = WithFlags::from_arg_matches(matches).unwrap();
        assert_eq!((name, own.as_deref(), flags.forward_url.as_deref()), ("with-flags", Some("x"), Some("u")));
        // Spelt and repeated as the gateway takes them.
        assert_eq!(
            (flags.listen.as_deref(), flags.policy.label, flags.verbose),
            (Some("b"), vec!["c".into(), "d".into()], true)
        );
        assert_eq!(parse(&["--listen=a", "with-flags"]).unwrap_err().kind(), ErrorKind::ArgumentConflict);
    }

    #[test]
    fn the_command_line_is_sound() {
        CommandLine::command().debug_assert();
    }

    #[test]
    fn exit_codes_are_told_in_their_order() {
        let told = |help: String| -> Vec<u8> {
            help.lines().skip(1).map(|line| line.split_whitespace().next().unwrap().parse().unwrap()).collect()
        };
        assert_eq!(told(Exit::help(&[])), [0, 64, 69]);
        let own = [(Exit::NoInput, "x"), (Exit::Negative, "y"), (Exit::Data, "z")];
        assert_eq!(told(Exit::help(&own)), [0, 1, 64, 65, 66, 69]);
        assert_eq!(told(Exit::help(&[Exit::USAGE_WITH_FILES])), [0, 64, 69]);
    }

    #[test]
    fn a_wrong_command_line_is_one_line() {
        let line = |args: &[&str]| line(&CommandLine::try_parse_from([&["infogw-proxy"], args].concat()).unwrap_err());
        for (args, expected) in [
            (
                &["token"][..],
                "error: 'infogw-proxy token' requires a subcommand but one was not provided [subcommands: upload, receive, read, help]",
            ),
            (&["token", "write"], "error: unrecognized subcommand 'write'"),
            (&["a secret"], "error: unexpected argument found; it is not shown, for it may be a secret"),
            (&["--listen=a", "se/cret"], "error: unexpected argument found; it is not shown, for it may be a secret"),
            (&["token", "s=cret"], "error: unexpected argument found; it is not shown, for it may be a secret"),
            (
                &["token", "upload", "--account=a"],
                "error: the following required arguments were not provided: --shared-key <FILE>, --cluster <ID>",
            ),
            (
                &["completions", "csh"],
                "error: invalid value 'csh' for '<SHELL>' [possible values: bash, elvish, fish, powershell, zsh]",
            ),
            (&["--listen=a", "token"], "error: the subcommand 'token' cannot be used with '--listen <ADDRESS>'"),
        ] {
            assert_eq!(line(args), expected);
        }
    }
}
