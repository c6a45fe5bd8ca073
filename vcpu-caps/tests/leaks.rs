//! The only test of its process: no other test opens a file or starts a thread while it runs.

use std::fs;

use vcpu_caps::kvm;

#[test]
fn verifying_leaves_no_descriptor_thread_or_mapping() {
    let kvm = kvm::open().unwrap_or_else(|error| panic!("{error}"));
    let mut report = kvm::probe(&kvm);
    // The first time may load what stays: allocator arenas, libraries.
    kvm::verify(&kvm, &mut report).unwrap();
    let count = || {
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        (
            fs::read_dir("/proc/self/fd").unwrap().count(),
            fs::read_dir("/proc/self/task").unwrap().count(),
            maps.lines().filter(|line| line.contains("kvm")).count(),
        )
    };
    let before = count();
    for _ in 0..10 {
        kvm::verify(&kvm, &mut report).unwrap();
    }
    assert_eq!(count(), before);
}
