//! What is known to differ, by guest, kind of KVM and way.
//!
//! A line of `expected/KIND.txt` is a guest, the ways that differ, and why. The ways are letters: `m`asked,
//! `u`nmasked, `r`ange, `d`etached, `k`illed; `w`, if a masked step is not one instruction; `f`, if the free
//! run does not end; `x`, if the guest cannot be run there at all. The reason is `leak N`, with a number of the
//! README's list, or `limit` and what that KVM does.

use std::collections::BTreeMap;

use intr_controller::IrqchipMode;

use crate::image::Guest;

/// What is known of one guest: the reason for each letter.
pub type Known = BTreeMap<char, &'static str>;

/// What a guest is called in the table: by its name, and its interrupt chips if they are not KVM's.
pub fn key(guest: &Guest, chips: IrqchipMode) -> String {
    match chips {
        IrqchipMode::Kernel => guest.name.clone(),
        chips => format!("{}@{chips}", guest.name),
    }
}

/// The table for a kind of KVM; empty if there is none.
pub fn table(flavour: &str) -> BTreeMap<&'static str, Known> {
    let text = match flavour {
        "kvm_pvm" => include_str!("expected/kvm_pvm.txt"),
        "kvm_amd" => include_str!("expected/kvm_amd.txt"),
        "kvm_intel" => include_str!("expected/kvm_intel.txt"),
        _ => "",
    };
    let mut table: BTreeMap<&str, Known> = BTreeMap::new();
    for line in text
        .lines()
        .filter(|line| !line.starts_with('#') && !line.trim().is_empty())
    {
        let (guest, rest) = line.split_once(' ').expect(line);
        let (letters, why) = rest.trim_start().split_once(' ').expect(line);
        let known = table.entry(guest).or_default();
        for letter in letters.chars() {
            let twice = known.insert(letter, why.trim());
            assert_eq!(twice, None, "{guest}: {letter} is there twice");
        }
    }
    table
}
