#![no_main]

use infogw_fuzz::{token, write_if_asked};

libfuzzer_sys::fuzz_target!(init: write_if_asked(env!("CARGO_BIN_NAME")), |data: &[u8]| token(data));
