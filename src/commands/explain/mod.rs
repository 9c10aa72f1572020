//! `infogw-proxy explain`: what the policy makes of series, each by itself, and of the request that they come in.
//!
//! The request goes through the layers of the [gateway](crate::stack), so that the answer is the one its sender would hear. What becomes of
//! each series is what [`LabelPolicy::explain`](infogw_layers::enforce::LabelPolicy::explain) says, by which the gateway decides, too.

mod fetch;
mod input;
mod report;
mod sender;
mod series;
mod stack;

use clap::{Args, ValueEnum};
use http::Uri;
use infogw_layers::policy::{self, LivePolicy};
use tokio::runtime;

use super::{Exit, Failure, read};
use crate::config::{Flags, PolicySources, given, url_of};
use input::{Body, Input};
use report::Report;
use sender::Sender;

/// The largest input, in bytes; and what one that is compressed may become.
const LARGEST_INPUT: usize = 64 << 20;
const LARGEST_DECODED: usize = 256 << 20;

/// What a Prometheus sends at most in a request, unless it is told otherwise.
const SAMPLES_PER_SEND: u32 = 2000;

/// The codes that this command has besides the common ones.
pub const EXITS: [(Exit, &str); 4] = [
    Exit::USAGE_WITH_FILES,
    (
        Exit::Negative,
        "the sender would hear a refusal, of the request or of series in it; that series are dropped is none",
    ),
    (Exit::Data, "the input does not read as what it should be"),
    (Exit::NoInput, "the input, or the token to fetch it with, cannot be read"),
];

/// Flags of `explain`. Of the gateway's those count that say what the policy is.
#[derive(Debug, Clone, Args)]
#[command(
    next_help_heading = "Explain",
    before_help = "Of the gateway's flags those count that say what the policy is; the others may stand here, and count for nothing."
)]
pub struct ExplainArgs {
    /// File with series, in the text format that /metrics and /federate give, or with --body a captured body; `-` is stdin, and the
    /// default.
    #[arg(value_name = "FILE", conflicts_with = "from")]
    file: Option<String>,
    /// The input is the body of a request, as the gateway received it: a remote write's, or an upload's.
    #[arg(long, conflicts_with_all = ["from", "external_label"])]
    body: bool,
    /// Content-Type of that request; without, the body is looked at.
    #[arg(long, value_name = "TYPE", requires = "body")]
    content_type: Option<String>,
    /// Content-Encoding of that request; without, the body is looked at.
    #[arg(long, value_name = "ENCODING", requires = "body")]
    content_encoding: Option<String>,
    /// Take the series that this URL gives now: /federate or /metrics of a Prometheus.
    #[arg(long, value_name = "URL")]
    from: Option<String>,
    /// Selector to ask /federate for; repeatable.
    #[arg(long = "match", value_name = "SELECTOR", requires = "from")]
    matches: Vec<String>,
    /// File with the bearer token to show to that URL.
    #[arg(long, value_name = "FILE", requires = "from")]
    from_token_file: Option<String>,
    /// Authorities that its certificate may be of, PEM, besides the system's roots.
    #[arg(long, value_name = "FILE", requires = "from")]
    from_ca_file: Option<String>,
    /// Label that the sender puts on series that lack it, as external_labels of a Prometheus do, name=value; repeatable,
    /// comma-separated.
    #[arg(long, value_name = "NAME=VALUE")]
    external_label: Vec<String>,
    /// Samples that the sender of a remote write puts into one request: max_samples_per_send of a Prometheus [default: 2000].
    #[arg(long, value_name = "SAMPLES", conflicts_with = "body", value_parser = clap::value_parser!(u32).range(1..))]
    samples_per_send: Option<u32>,
    /// Cluster that sends it [default: the one that the first series names].
    #[arg(long, value_name = "ID")]
    cluster: Option<String>,
    /// Account that the cluster belongs to, so that overrides of it count.
    #[arg(long, value_name = "ID")]
    account: Option<String>,
    /// Where it is sent: /metrics/v1/receive or /upload [default: receive; of a body what it is made for].
    #[arg(long, value_name = "ENDPOINT", value_enum)]
    endpoint: Option<Endpoint>,
    /// How to say it.
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value_t = Format::Text)]
    output: Format,

    /// The gateway's.
    #[command(flatten)]
    flags: Flags,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Endpoint {
    /// Remote write.
    Receive,
    /// Metric families.
    Upload,
}

impl From<Endpoint> for policy::Endpoint {
    fn from(endpoint: Endpoint) -> Self {
        match endpoint {
            Endpoint::Receive => policy::Endpoint::Receive,
            Endpoint::Upload => policy::Endpoint::Upload,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A line for each series and each label that changes, then the totals.
    Text,
    /// One JSON object: series, sender, requests, totals, unmatched_rules.
    Json,
}

/// Explains.
///
/// # Errors
/// [`Failure`], if there is nothing to explain, or nothing to explain it by.
pub fn run(args: ExplainArgs) -> Result<Exit, Failure> {
    let sources = PolicySources::of_flags(args.flags.clone())?;
    let policy = sources.read()?;
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    let input = runtime.block_on(input(&args))?;
    let subject = sources.subject();
    let label = match input.endpoint {
        policy::Endpoint::Upload => &subject.partition_label,
        policy::Endpoint::Receive => &subject.receive_label,
    };
    let cluster = match given(args.cluster) {
        Some(cluster) => cluster,
        None => series::first_value(&input, label)
            .map_err(|error| {
                let why = format!(
                    "--cluster is required: the series, whose label `{label}` names the sender, cannot be read: {error}"
                );
                Failure::new(Exit::Usage, why)
            })?
            .ok_or_else(|| {
                let why =
                    format!("--cluster is required: the first series has no label `{label}` that names its sender");
                Failure::new(Exit::Usage, why)
            })?,
    };
    let sender = Sender::new(&sources, &policy, input.endpoint, &cluster, given(args.account))?;
    let live = LivePolicy::new(policy.policy);
    let mut report = Report::new(&sender, args.output);
    for body in &input.bodies {
        let answer = runtime.block_on(stack::answer(&live, &sender, &input, body.clone()));
        report.begin_request();
        let unread = series::each(&sender, &input, body, |series| report.series(&series)).err();
        report.end_request(body.len(), answer, unread);
    }
    let refused = report.finish()?;
    Ok(if refused { Exit::Negative } else { Exit::Done })
}

async fn input(args: &ExplainArgs) -> Result<Input, Failure> {
    let endpoint = args.endpoint.map(policy::Endpoint::from);
    if endpoint == Some(policy::Endpoint::Upload) && args.samples_per_send.is_some() {
        let why = "--samples-per-send: an upload is one request; leave it out, or give --endpoint receive";
        return Err(Failure::new(Exit::Usage, why));
    }
    let external = crate::config::pairs("--external-label", &args.external_label)?;
    let (name, bytes) = match given(args.from.clone()) {
        Some(from) => {
            let url: Uri = url_of("--from", &from)?;
            let text =
                fetch::text(&url, &args.matches, args.from_token_file.clone(), args.from_ca_file.clone()).await?;
            ("--from", text)
        }
        None => {
            let file = given(args.file.clone()).unwrap_or_else(|| "-".to_owned());
            let bytes = read(&file, LARGEST_INPUT as u64)?;
            (if file == "-" { "stdin" } else { args.file.as_deref().unwrap_or_default() }, bytes)
        }
    };
    if args.body {
        let head =
            Body { content_type: given(args.content_type.clone()), encoding: given(args.content_encoding.clone()) };
        return input::of_body(name, bytes.into(), endpoint, head);
    }
    match endpoint.unwrap_or(policy::Endpoint::Receive) {
        policy::Endpoint::Receive => {
            input::received(name, &bytes, &external, args.samples_per_send.unwrap_or(SAMPLES_PER_SEND))
        }
        policy::Endpoint::Upload => input::uploaded(name, bytes, &external),
    }
}
