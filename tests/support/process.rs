//! A child process whose output is kept, and which never outlives its test.

use std::{
    process::{ExitStatus, Stdio},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncWriteExt, BufReader},
    process::{Child, Command},
    sync::watch,
    task::JoinHandle,
};

use super::{DEADLINE, within};

/// A running process. Dropping it kills it, and prints its stderr if the test is panicking.
pub struct Process {
    name: String,
    child: Child,
    stdout: Output,
    stderr: Output,
    shown: fn(&str) -> bool,
}

/// How a process ended, and everything it said.
#[derive(Debug)]
pub struct Exit {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Exit {
    /// The exit code; panics if a signal ended the process.
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| panic!("ended by a signal: {self:?}"))
    }
}

impl Process {
    /// Runs `command` with both outputs captured and no input.
    pub fn spawn(mut command: Command) -> Self {
        let name = command.as_std().get_program().to_string_lossy().rsplit('/').next().unwrap_or_default().to_owned();
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().unwrap_or_else(|error| panic!("`{name}` cannot be run: {error}"));
        let stdout = Output::capture(child.stdout.take().expect("stdout is piped"));
        let stderr = Output::capture(child.stderr.take().expect("stderr is piped"));
        Self { name, child, stdout, stderr, shown: |_| true }
    }

    /// Of its stderr, shows only these lines when the test panics.
    pub fn showing(mut self, shown: fn(&str) -> bool) -> Self {
        self.shown = shown;
        self
    }

    /// The first line on stderr that holds `needle`, be it written already or still to come.
    pub async fn wait_for_log(&self, needle: &str) -> String {
        let mut lines = self.stderr.lines.clone();
        let found = |lines: &Vec<String>| lines.iter().any(|line| line.contains(needle));
        let line = match tokio::time::timeout(DEADLINE, lines.wait_for(found)).await {
            Ok(Ok(lines)) => lines.iter().find(|line| line.contains(needle)).cloned(),
            Ok(Err(_ended)) => panic!("{} ended before it logged {needle:?}\n{}", self.name, self.stderr.text()),
            Err(_elapsed) => {
                panic!("{} did not log {needle:?} within {DEADLINE:?}\n{}", self.name, self.stderr.text())
            }
        };
        line.expect("the awaited line is there")
    }

    /// The lines on stderr so far.
    pub fn logs(&self) -> Vec<String> {
        self.stderr.lines.borrow().clone()
    }

    /// The lines on stdout so far.
    pub fn printed(&self) -> Vec<String> {
        self.stdout.lines.borrow().clone()
    }

    /// Waits until the lines on stdout are as `enough` wants them; `what` names it.
    pub async fn wait_until_printed(&self, what: &str, enough: impl Fn(&[String]) -> bool) {
        let mut lines = self.stdout.lines.clone();
        let ended = match tokio::time::timeout(DEADLINE, lines.wait_for(|lines| enough(lines))).await {
            Ok(Ok(_)) => return,
            Ok(Err(_ended)) => "ended before it printed".to_owned(),
            Err(_elapsed) => format!("did not within {DEADLINE:?} print"),
        };
        panic!("{} {ended} {what}\n{}\n{}", self.name, self.stdout.text(), self.stderr.text());
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id().expect("the process was not waited for")
    }

    /// Sends the signal called `name`, such as `TERM` or `HUP`.
    pub async fn signal(&self, name: &str) {
        let pid = self.id().to_string();
        // The shell's own `kill`: the standard library sends no signal but KILL.
        let sent = Command::new("sh").args(["-c", r#"kill -s "$0" "$1""#, name, &pid]).status().await;
        assert!(sent.is_ok_and(|status| status.success()), "SIG{name} did not reach {}", self.name);
    }

    /// Kills it, by SIGKILL, and waits until it is gone.
    pub async fn kill(&mut self) -> Exit {
        self.child.start_kill().expect("the process was not waited for");
        self.exit().await
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(Some(_)))
    }

    /// Waits for the process to end by itself.
    pub async fn exit(&mut self) -> Exit {
        let status = match tokio::time::timeout(DEADLINE, self.child.wait()).await {
            Ok(status) => status.expect("a child can be waited for"),
            Err(_) => panic!("{} did not end within {DEADLINE:?}", self.name),
        };
        self.stdout.end().await;
        self.stderr.end().await;
        Exit { status, stdout: self.stdout.text(), stderr: self.stderr.text() }
    }
}

impl Drop for Process {
    #[expect(clippy::disallowed_methods, reason = "drop cannot await; a killed process is gone within milliseconds")]
    fn drop(&mut self) {
        // Waited for here, as `kill_on_drop` does not: what the process writes to must be gone when its directory is removed.
        let _ = self.child.start_kill();
        let deadline = Instant::now() + Duration::from_secs(5);
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        if std::thread::panicking() {
            let lines = self.logs();
            let shown: Vec<_> = lines.iter().map(String::as_str).filter(|line| (self.shown)(line)).collect();
            eprintln!("--- {} logged:\n{}", self.name, shown.join("\n"));
        }
    }
}

/// Runs `command` on this input until it ends by itself.
pub async fn run(mut command: Command, input: &[u8]) -> Exit {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?} cannot be run: {error}"));
    let mut stdin = child.stdin.take().expect("stdin is piped");
    let fed = async move {
        // Whoever has read enough reads no more.
        let _ = stdin.write_all(input).await;
    };
    let (_, output) =
        within(&format!("the end of {command:?}"), async { tokio::join!(fed, child.wait_with_output()) }).await;
    let output = output.expect("a child can be waited for");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end_matches('\n').to_owned();
    Exit { status: output.status, stdout: text(&output.stdout), stderr: text(&output.stderr) }
}

/// The value of `key` in a logfmt line, unquoted.
pub fn logfmt<'l>(line: &'l str, key: &str) -> Option<&'l str> {
    let start = line.match_indices(key).find_map(|(at, _)| {
        let whole = at == 0 || line[..at].ends_with(' ');
        (whole && line[at + key.len()..].starts_with('=')).then_some(at + key.len() + 1)
    })?;
    let value = &line[start..];
    match value.strip_prefix('"') {
        Some(quoted) => quoted.split('"').next(),
        None => value.split_whitespace().next(),
    }
}

/// One of a process's outputs. The channel closes when the output ends.
struct Output {
    lines: watch::Receiver<Vec<String>>,
    reader: JoinHandle<()>,
}

impl Output {
    fn capture(stream: impl AsyncRead + Send + Unpin + 'static) -> Self {
        let (sender, lines) = watch::channel(Vec::new());
        let reader = tokio::spawn(async move {
            let mut stream = BufReader::new(stream);
            let mut line = Vec::new();
            // By bytes, not `lines()`: output that is not UTF-8 must show up as such, not end the capture.
            while stream.read_until(b'\n', &mut line).await.is_ok_and(|read| read > 0) {
                let text = String::from_utf8_lossy(&line).trim_end_matches('\n').to_owned();
                sender.send_modify(|lines: &mut Vec<String>| lines.push(text));
                line.clear();
            }
        });
        Self { lines, reader }
    }

    async fn end(&mut self) {
        if !self.reader.is_finished() {
            within("the end of the output", &mut self.reader).await.expect("the reader does not panic");
        }
    }

    fn text(&self) -> String {
        self.lines.borrow().join("\n")
    }
}
