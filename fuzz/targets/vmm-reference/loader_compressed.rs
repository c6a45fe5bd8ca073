//! Any bytes as a compressed kernel: they open to no more than the limit, or are refused with a reason.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vmm_reference::loader::Compression;

const LIMIT: u64 = 1 << 20;

fuzz_target!(|file: &[u8]| {
    let Some(format) = Compression::of(file) else {
        return;
    };
    match format.open_within(file, LIMIT) {
        Ok(content) => {
            assert!(content.len() as u64 <= LIMIT);
            assert_eq!(format.open_within(file, LIMIT).as_ref(), Ok(&content));
        }
        Err(error) => assert!(error.to_string().contains(&format.to_string()), "{error}"),
    }
});
