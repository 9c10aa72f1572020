//! `infogw-proxy check`: what flags and policy file come to, and what in them is seldom meant.

mod rules;
mod warnings;

use std::{
    io::{self, Write as _},
    time::SystemTime,
};

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::{Exit, Failure, print};
use crate::{
    client::Clients,
    config::{
        Config, Flags,
        policy::{
            document::Document,
            schema::{POLICY_EXAMPLE, POLICY_SCHEMA},
        },
        show::ShownFlags,
    },
    gateway::StartError,
};

/// Arguments of `check`.
#[derive(Debug, Clone, Args)]
pub struct CheckArgs {
    /// How to print the configuration.
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value_t = Format::Yaml)]
    output: Format,
    /// Exit with 1 if there is anything to warn of.
    #[arg(long)]
    deny_warnings: bool,
    /// Print the JSON Schema of the policy file, for editors, and nothing else.
    #[arg(long, exclusive = true)]
    print_schema: bool,
    /// Print a policy file to begin with, and nothing else.
    #[arg(long, exclusive = true)]
    print_example: bool,
    #[command(flatten)]
    flags: Flags,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// YAML; what is under `policy` is a policy file.
    Yaml,
    /// JSON.
    Json,
}

/// The end of `--help`.
pub fn exit_codes() -> String {
    Exit::help(&[
        (Exit::Negative, "there is something to warn of, and --deny-warnings is given"),
        Exit::USAGE_WITH_FILES,
    ])
}

/// What a gateway with these flags would go by.
#[derive(Serialize)]
struct Effective<'a> {
    flags: ShownFlags,
    policy: &'a Document,
    policy_hash: &'a str,
}

/// Prints the configuration, and on stderr a line for each thing to warn of.
///
/// # Errors
/// What would keep a gateway with these flags from starting, but for its addresses: they may be in use.
pub fn run(args: CheckArgs) -> Result<Exit, Failure> {
    let CheckArgs { output, deny_warnings, print_schema, print_example, flags } = args;
    if print_schema || print_example {
        print(if print_schema { POLICY_SCHEMA } else { POLICY_EXAMPLE })?;
        return Ok(Exit::Done);
    }
    let flags = flags.with_environment()?;
    let (config, written) = Config::read(flags.clone())?;
    Clients::new(&config).map_err(StartError::Environment)?;
    let status = config.policy.status();
    let effective = Effective { flags: ShownFlags::new(&flags), policy: &written.document, policy_hash: &status.hash };
    print(&effective.text(output)?)?;
    let warnings = warnings::warnings(&config, &flags, &written, SystemTime::now());
    let mut stderr = io::stderr().lock();
    for warning in &warnings {
        // Names and selectors may hold line breaks.
        let _ = writeln!(stderr, "warning: {}", warning.replace(char::is_control, " "));
    }
    Ok(if deny_warnings && !warnings.is_empty() { Exit::Negative } else { Exit::Done })
}

impl Effective<'_> {
    fn text(&self, format: Format) -> Result<String, Failure> {
        let unavailable = |error: &dyn std::fmt::Display| Failure::new(Exit::Unavailable, error);
        match format {
            Format::Yaml => {
                let options = serde_saphyr::ser_options! { prefer_block_scalars: false };
                serde_saphyr::to_string_with_options(self, options).map_err(|error| unavailable(&error))
            }
            Format::Json => {
                serde_json::to_string_pretty(self).map(|json| json + "\n").map_err(|error| unavailable(&error))
            }
        }
    }
}
