//! A gateway for pushed metrics, in telemeter-server's place.
//!
//! Clusters that nobody can scrape push their metrics here. The gateway decides who they are, how often they may write and what
//! they may write, turns what they sent into remote write, and forwards it to a receive endpoint.
//!
//! # The life of a request
//!
//! `main` reads the flags into a [`Config`](config::Config) in which nothing can be invalid any
//! more, and starts a [`Gateway`](gateway::Gateway). Its public [listener](server), plaintext or [TLS](tls), hands each request to
//! the [router](route), and that to one of three [stacks](stack) of layers:
//!
//! 1. Whatever happens, it is **observed** once, and whoever refuses it, the refusal is **answered** in one place; what a refused
//!    sender is still sending is **drained**, so that the answer arrives.
//! 2. It is **authorized**: an upload by the token that [`/authorize`](registration) issued, a remote-write request by a
//!    [certificate, a balancer's headers](identity), or the cluster's own credentials, which the authorizer is asked about.
//! 3. The [policy](config::policy) in force is looked up, once: what the layers below hold it to, whatever is reloaded meanwhile. Who
//!    is **denied** goes no further.
//! 4. It is **charged** against the cluster's rate, before its body is read.
//! 5. Its body is **decoded**, counted as it arrives and checked before memory is spent, into offsets: no label becomes a string.
//! 6. What more than so many do at once is **shed**.
//! 7. Labels are **enforced**: whose series, which series, which labels.
//! 8. Metric families are **translated** to remote write.
//! 9. The payload is **encoded**, or handed on as received if nothing was changed.
//! 10. It is [forwarded](forward), as its tenant, and [again](retry) if nobody can have taken it; the upstream's addresses are [balanced](balance). What the upstream says of the data is passed on; what it says of us makes the sender
//!     come back.
//!
//! Health, metrics and reloads are the [internal listener's](admin). Files that may change meanwhile are
//! [watched](watch), and [read again](reload). What the
//! binary does besides being a gateway is among its [commands].
//!
//! # The stacks
//!
//! From the outside in. The table is read off the types; a test holds it against them.
//!
#![doc = include_str!("stacks.md")]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

pub mod admin;
pub mod authorizers;
pub mod balance;
pub mod client;
pub mod commands;
pub mod config;
pub mod credentials;
pub mod dev;
pub mod federate;
pub mod forward;
pub mod gateway;
pub mod identity;
pub mod keys;
pub mod limits;
pub mod log;
pub mod proxy;
pub mod registration;
pub mod reload;
pub mod retry;
pub mod route;
pub mod scrape;
pub mod server;
pub mod shared;
pub mod stack;
pub mod stores;
pub mod tls;
pub mod traces;
pub mod watch;

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use hyper::body::Incoming;
    use infogw_layers::{
        describe::{Describe, Row},
        rejection::Reason,
    };

    use crate::{
        admin::metrics::Metrics,
        authorizers,
        client::Clients,
        config::{Config, Flags},
        stack::{self, Stack},
    };

    fn rows(stack: &impl Stack<Incoming>) -> Vec<Row> {
        fn of<S: Describe<http::Request<Incoming>>>(_: &S) -> Vec<Row> {
            let mut rows = Vec::new();
            S::describe(&mut rows);
            rows
        }
        of(stack)
    }

    fn table(name: &str, rows: &[Row]) -> String {
        let mut table = format!(
            "**`{name}`**\n\n| layer | request before | request after | refuses with |\n| --- | --- | --- | --- |\n"
        );
        for (i, row) in rows.iter().enumerate() {
            let after = rows.get(i + 1).map_or("", |next| next.request.as_str());
            let after = if after.is_empty() { "-".to_owned() } else { format!("`{after}`") };
            let reasons: Vec<_> = row.reasons.iter().map(|reason| format!("`{reason}`")).collect();
            writeln!(table, "| {} | `{}` | {after} | {} |", row.layer, row.request, reasons.join(", ")).unwrap();
        }
        table
    }

    /// `UPDATE_STACKS=1` writes the table anew.
    #[test]
    fn the_table_in_the_docs_is_what_the_stacks_are() {
        let flags = Flags {
            forward_url: Some("http://localhost/".to_owned()),
            insecure_accept_any_token: true,
            ..Flags::default()
        };
        let config = Config::new(flags).unwrap();
        let (metrics, clients) = (Metrics::new().unwrap(), Clients::new(&config).unwrap());
        let circuit = authorizers::circuit(metrics);
        let limits = crate::limits::Limits::new(&config, metrics);
        let stacks = [
            ("/authorize", rows(&stack::authorize(&config, metrics, &clients, &circuit, &limits))),
            ("/upload", rows(&stack::upload(&config, metrics, &clients, &limits))),
            ("/metrics/v1/receive", rows(&stack::receive(&config, metrics, &clients, &circuit, &limits))),
        ];
        let tables: Vec<_> = stacks.iter().map(|(name, rows)| table(name, rows)).collect();
        let tables = tables.join("\n");
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/stacks.md");
        if std::env::var_os("UPDATE_STACKS").is_some() {
            std::fs::write(path, &tables).unwrap();
        }
        assert_eq!(include_str!("stacks.md"), tables, "run this test with UPDATE_STACKS=1 and build again");

        let used: Vec<Reason> = stacks.iter().flat_map(|(_, rows)| rows).flat_map(|row| row.reasons.clone()).collect();
        let unused: Vec<_> = Reason::ALL.iter().filter(|reason| !used.contains(reason)).collect();
        assert!(unused.is_empty(), "no layer refuses with {unused:?}");
    }
}
