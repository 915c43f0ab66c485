#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| wattle_mesh::fuzz::claims(data));
