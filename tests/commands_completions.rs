//! `infogw-proxy completions`: each shell's script knows every command and flag, and bash completes by it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::process::Stdio;

use clap::CommandFactory;
use infogw_proxy::commands::CommandLine;
use support::{
    Gateway,
    process::{self, Exit},
};
use tokio::process::Command;

const SHELLS: [&str; 5] = ["bash", "elvish", "fish", "powershell", "zsh"];

#[tokio::test]
async fn each_script_names_every_command_and_flag() {
    let commands = commands();
    assert!(commands.iter().any(|(path, _)| path.ends_with(&["token".to_owned(), "read".to_owned()])));
    for shell in SHELLS {
        let script = completions(shell).await;
        let words: Vec<_> = script.split(|c: char| c.is_whitespace() || "\"'`,()[]{}=:*+".contains(c)).collect();
        for (path, flags) in &commands {
            for name in path {
                assert!(words.contains(&name.as_str()), "{shell}: no {name}");
            }
            for flag in flags {
                let told = match (shell, flag.strip_prefix("--")) {
                    ("fish", Some(long)) => words.windows(2).any(|pair| pair == ["-l", long]),
                    ("fish", None) => words.windows(2).any(|pair| pair == ["-s", &flag[1..]]),
                    _ => words.contains(&flag.as_str()),
                };
                assert!(told, "{shell}: no {flag} of {path:?}");
            }
        }
    }
}

#[tokio::test]
async fn bash_completes_commands_and_flags_by_it() {
    let script = completions("bash").await;
    let exit = bash(&["-n", "-s"], &script).await;
    assert_eq!((exit.code(), exit.stdout.as_str(), exit.stderr.as_str()), (0, "", ""));

    // Asks as readline does: what may stand in the place of the last word?
    const ASK: &str = r#"
        words=("$@")
        COMP_WORDS=("${words[@]}") COMP_CWORD=$((${#words[@]} - 1))
        function=$(complete -p infogw-proxy | sed 's/.*-F \([^ ]*\).*/\1/')
        previous=
        [ "$COMP_CWORD" -eq 0 ] || previous=${words[COMP_CWORD - 1]}
        "$function" infogw-proxy "${words[COMP_CWORD]}" "$previous"
        printf '%s\n' "${COMPREPLY[@]}"
    "#;
    let ask = async |words: &[&str]| -> Vec<String> {
        let args = [&["-s", "--", "infogw-proxy"], words].concat();
        let exit = bash(&args, &format!("{script}\n{ASK}")).await;
        assert_eq!((exit.code(), exit.stderr.as_str()), (0, ""), "{words:?}: {exit:?}");
        exit.stdout.lines().map(str::to_owned).collect()
    };
    for (path, flags) in commands() {
        let mut words: Vec<_> = path.iter().map(String::as_str).collect();
        words.push("--");
        let mut long: Vec<_> = flags.into_iter().filter(|flag| flag.starts_with("--")).collect();
        let mut completed = ask(&words).await;
        long.sort();
        completed.sort();
        assert_eq!(completed, long, "{path:?}");
    }
    assert_eq!(ask(&["tok"]).await, ["token"]);
    assert_eq!(ask(&["token", "re"]).await, ["receive", "read"]);
    assert_eq!(ask(&["token", "read", "--output", ""]).await, ["text", "json"]);
    assert_eq!(ask(&["completions", "z"]).await, ["zsh"]);
}

/// As behind `| head`.
#[tokio::test]
async fn output_that_nobody_reads_is_no_failure() {
    for args in [&["completions", "zsh"][..], &["--help"], &["token", "read", "--help"], &["--version"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let child = Gateway::command().args(args).stdin(Stdio::null()).stdout(writer).stderr(Stdio::piped()).spawn();
        let output = support::within("the end", child.unwrap().wait_with_output()).await.unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), &*stderr), (Some(0), ""), "{args:?}");
    }
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let child = Gateway::command().args(["completions", "zsh"]).stdout(full).stderr(Stdio::piped()).spawn();
    let output = support::within("the end", child.unwrap().wait_with_output()).await.unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(69), "{stderr}");
    assert!(stderr.starts_with("error: stdout: No space left") && stderr.lines().count() == 1, "{stderr}");
}

/// Each command by its path, that of the gateway empty, with its flags.
fn commands() -> Vec<(Vec<String>, Vec<String>)> {
    fn walk(command: &clap::Command, path: &[String], found: &mut Vec<(Vec<String>, Vec<String>)>) {
        let flags = command.get_arguments().filter(|flag| !flag.is_hide_set()).flat_map(|flag| {
            let short = flag.get_short().map(|short| format!("-{short}"));
            short.into_iter().chain(flag.get_long().map(|long| format!("--{long}")))
        });
        found.push((path.to_vec(), flags.collect()));
        for inner in command.get_subcommands().filter(|inner| inner.get_name() != "help") {
            walk(inner, &[path, &[inner.get_name().to_owned()]].concat(), found);
        }
    }
    let mut line = CommandLine::command();
    line.build();
    let mut found = Vec::new();
    walk(&line, &[], &mut found);
    found
}

async fn completions(shell: &str) -> String {
    let mut command = Gateway::command();
    command.args(["completions", shell]);
    let exit = process::run(command, b"").await;
    assert_eq!((exit.code(), exit.stderr.as_str()), (0, ""), "{shell}");
    exit.stdout
}

async fn bash(args: &[&str], script: &str) -> Exit {
    let mut command = Command::new("bash");
    command.args(["--norc", "--noprofile"]).args(args);
    process::run(command, script.as_bytes()).await
}
