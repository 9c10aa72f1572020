//! Instructions, as callgrind counts them.

use std::{
    env,
    ffi::OsString,
    fs,
    io::ErrorKind,
    process::{Command, Output},
};

use http::Request;

use crate::{
    Outcome, WARM_UP,
    cases::Case,
    gateway::{Chunks, Gateway},
};

/// Makes callgrind count [`answer_all`] with all that it calls, and neither start-up nor warm-up.
const COUNTED: &str = "--toggle-collect=*budget*callgrind*answer_all*";
/// Keeps glibc from copying and filling by `rep`, of which callgrind takes each byte for an instruction, and only where the processor
/// is good at it.
const WITHOUT_REP: &str = "glibc.cpu.x86_rep_movsb_threshold=1073741824:glibc.cpu.x86_rep_stosb_threshold=1073741824";

/// Instructions that each request of a case takes.
pub(crate) fn instructions(case: Case) -> Outcome<u64> {
    // More take longer and say the same.
    let requests = (10_000 / case.shape.series).clamp(4, 200);
    let folder = tempfile::tempdir()?;
    let written = folder.path().join("callgrind.out");
    let mut out_file = OsString::from("--callgrind-out-file=");
    out_file.push(&written);
    let valgrind = Command::new("valgrind")
        .env("GLIBC_TUNABLES", WITHOUT_REP)
        .args(["--quiet", "--tool=callgrind", "--collect-atstart=no", COUNTED])
        .arg(out_file)
        .arg(env::current_exe()?)
        .args(["answer", case.request.name()])
        .args([case.shape.series, case.shape.labels, requests].map(|number| number.to_string()))
        .output();
    let Output { status, stderr, .. } = match valgrind {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Err(
                "valgrind is not installed: install it, or count allocations alone with `-- --allocations`".into()
            );
        }
        valgrind => valgrind?,
    };
    if !status.success() {
        return Err(format!("{case}: valgrind ended with {status}: {}", String::from_utf8_lossy(&stderr).trim()).into());
    }
    let written = fs::read_to_string(written)?;
    let totals = written.lines().find_map(|line| line.strip_prefix("totals: ")).ok_or("callgrind wrote no totals")?;
    match totals.trim().parse::<u64>()? {
        0 => Err("callgrind did not find what to count: the bench needs its symbols".into()),
        total => Ok(total / requests as u64),
    }
}

/// What runs under callgrind.
pub(crate) fn run(case: Case, requests: usize) -> Outcome<()> {
    let gateway = Gateway::new(case)?;
    for _ in 0..WARM_UP {
        gateway.answer(gateway.request());
    }
    answer_all(&gateway, (0..requests).map(|_| gateway.request()).collect());
    Ok(())
}

/// Never inlined: callgrind knows it by its name.
#[inline(never)]
fn answer_all(gateway: &Gateway, requests: Vec<Request<Chunks>>) {
    for request in requests {
        gateway.answer(request);
    }
}
