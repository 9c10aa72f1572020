#![no_main]

use infogw_fuzz::{metric_families, mutate::mutate, write_if_asked};

libfuzzer_sys::fuzz_target!(init: write_if_asked(env!("CARGO_BIN_NAME")), |data: &[u8]| metric_families(data));
libfuzzer_sys::fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    mutate(data, size, max_size, seed)
});
