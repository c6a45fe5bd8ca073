//! Guests cannot tell that they are debugged: each is run free, stepped, and left by its debugger in the
//! middle, and must leave the same registers, the same memory and the same output.
//!
//! `cargo test -p vmm-reference --test transparent -- --nocapture` prints what differs. GUEST=text,text runs only
//! the guests with one of these texts in their names. The guests are in `guests/transparent/`.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    unreachable_pub,
    reason = "helpers of tests stop the test, as the tests themselves do"
)]

mod device;
mod expected;
mod image;
mod layout;
mod machine;
mod naive;
mod random;
mod report;
mod simulated;
mod snapshot;
mod walk;
mod ways;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use intr_controller::IrqchipMode;
use vcpu_caps::{Capability, Mechanism};

use crate::device::End;
use crate::image::{Guest, guests};
use crate::walk::Walk;
use crate::ways::Way;

/// Machines at once: the end of a VM waits for the kernel's RCU.
const WORKERS: usize = 4;

/// As [`WORKERS`]. In Bochs NMIs did not come while several machines ran.
fn workers() -> usize {
    if is_slow() { 1 } else { WORKERS }
}

/// What differs for one guest: a text for each letter of [`expected`].
type Found = BTreeMap<char, String>;

/// An emulated machine for which all ways take too long: no second free run, no ranges, and the debugger
/// detaches once.
fn is_slow() -> bool {
    std::env::var("TEST_PERCENT").is_ok_and(|percent| percent.parse::<u32>().unwrap() <= 10)
}

/// The texts of GUEST; all guests have the empty one in their names.
fn wanted() -> Vec<String> {
    let texts = std::env::var("GUEST").unwrap_or_default();
    texts.split(',').map(str::to_owned).collect()
}

fn is_wanted(guest: &Guest, wanted: &[String]) -> bool {
    wanted.iter().any(|text| guest.name.contains(text))
}

/// Runs a guest in all ways.
fn examine(guest: &Guest, chips: IrqchipMode) -> Found {
    let mut found = Found::new();
    let free = ways::free(guest, chips);
    if free.end != End::Done {
        found.insert('f', free.end.to_string());
        return found;
    }
    if !is_slow() {
        if let Some(text) = report::difference(&free, &ways::free(guest, chips)) {
            found.insert('f', format!("two free runs differ: {text}"));
            return found;
        }
    }
    let mut walk = Walk::default();
    let mut steps = 0;
    let to_the_end = [Way::Masked, Way::Unmasked, Way::Range];
    for way in &to_the_end[..if is_slow() { 2 } else { 3 }] {
        let way = *way;
        // An interrupt that another vCPU sends may arrive between the plan of an unmasked step and its entry:
        // KVM's chips let it in (docs/transparency.md). That happens now and then, and a leak always.
        let mut attempts = if way == Way::Unmasked && guest.cpus > 1 {
            3
        } else {
            1
        };
        let (outcome, count) = loop {
            attempts -= 1;
            let stepped = ways::stepped(guest, chips, way, |running, registers| {
                if way == Way::Masked {
                    walk.at(guest, ways::place(&running.memory, registers));
                    let pc = registers.linear_pc();
                    if guest.waits.iter().any(|wait| wait.at == pc) {
                        walk.skip();
                    }
                }
            });
            if attempts == 0 || report::difference(&free, &stepped.0).is_none() {
                break stepped;
            }
        };
        if way == Way::Masked {
            steps = count;
        }
        if let Some(mut text) = report::difference(&free, &outcome) {
            if way == Way::Masked {
                if let Some(culprit) = report::culprit(guest, chips, &free, &outcome) {
                    text += &format!(", stored at {culprit}");
                }
            }
            found.insert(way.letter(), text);
        }
    }
    if let Some(text) = walk.wrong() {
        found.insert('w', text);
    }
    let points: Vec<usize> = match std::env::var("DETACH").as_deref() {
        Ok("all") => (0..steps).collect(),
        _ if is_slow() => vec![steps / 2],
        _ => vec![steps / 4, steps / 2, steps * 3 / 4],
    };
    for after in points {
        let outcome = ways::detached(guest, chips, after);
        if let Some(text) = report::difference(&free, &outcome) {
            found.insert(
                Way::Detached.letter(),
                format!("after {after} steps: {text}"),
            );
            break;
        }
    }
    // The first step runs on the vCPU's own thread, and may be over before the stub sees that the client is gone.
    let at = (steps / 2).max(1);
    let outcome = ways::killed(guest, chips, at);
    if let Some(text) = report::difference(&free, &outcome) {
        found.insert(Way::Killed.letter(), format!("at step {at}: {text}"));
    }
    found
}

/// Runs the guests of a theme, and compares what differs with what is known to.
fn theme(theme: &str, chips: IrqchipMode) {
    let wanted = wanted();
    // The test's own line has no end yet.
    println!();
    let table = expected::table(machine::flavour());
    let chosen: Vec<Guest> = guests()
        .into_iter()
        .filter(|guest| guest.name.split('/').next() == Some(theme) && is_wanted(guest, &wanted))
        .filter(|guest| {
            let known = table.get(expected::key(guest, chips).as_str());
            let why = known.and_then(|known| known.get(&'x'));
            why.inspect(|why| println!("not run: {} [{why}]", guest.name))
                .is_none()
        })
        .collect();
    assert!(
        !chosen.is_empty() || wanted != [""],
        "there is no guest of {theme}"
    );
    let found = for_all(&chosen, |guest| examine(guest, chips));
    let none = expected::Known::new();
    let mut wrong = Vec::new();
    for (guest, found) in chosen.iter().zip(&found) {
        let key = expected::key(guest, chips);
        let known = table.get(key.as_str()).unwrap_or(&none);
        judge(&key, found, known, &mut wrong);
    }
    let same = found.iter().filter(|found| found.is_empty()).count();
    println!(
        "{theme}, {chips}: {} guests, {same} identical in all ways",
        chosen.len()
    );
    assert!(
        wrong.is_empty(),
        "not as expected/{}.txt says:\n{}",
        machine::flavour(),
        wrong.join("\n")
    );
}

/// Adds to `wrong` what differs and is not known, and what is known and does not differ.
fn judge(key: &str, found: &Found, known: &expected::Known, wrong: &mut Vec<String>) {
    for (letter, text) in found {
        let why = known.get(letter).copied().unwrap_or("NEW");
        println!("differs: {key} {letter} [{why}] {text}");
        // What a KVM cannot do has a name: its own words.
        let name = why.strip_prefix("limit ").unwrap_or("(a leak)");
        if !known.contains_key(letter) || (*letter == 'f' && !text.contains(name)) {
            wrong.push(format!("{key} {letter} {text}"));
        }
    }
    for (letter, why) in known {
        // Nothing else runs where the free run does not end.
        let ran = !found.contains_key(&'f') && (*letter != Way::Range.letter() || !is_slow());
        if ran && !found.contains_key(letter) {
            println!("same: {key} {letter} [{why}]");
            wrong.push(format!("{key} {letter} no longer differs: {why}"));
        }
    }
}

/// Some at a time. The results are in the order of the guests.
fn for_all<T: Send>(guests: &[Guest], act: impl Fn(&Guest) -> T + Sync) -> Vec<T> {
    let next = AtomicUsize::new(0);
    let results = Mutex::new(BTreeMap::new());
    thread::scope(|scope| {
        for _ in 0..workers() {
            scope.spawn(|| {
                loop {
                    let place = next.fetch_add(1, Ordering::Relaxed);
                    let Some(guest) = guests.get(place) else {
                        break;
                    };
                    let result = act(guest);
                    results.lock().unwrap().insert(place, result);
                }
            });
        }
    });
    results.into_inner().unwrap().into_values().collect()
}

/// A test for each theme, which is the first part of its guests' names.
macro_rules! themes {
    ($($theme:ident)*) => {
        const THEMES: &[&str] = &[$(stringify!($theme)),*];
        $(
            #[test]
            fn $theme() {
                theme(stringify!($theme), IrqchipMode::Kernel);
            }
        )*
    };
}
themes!(small fault flags debug calls user interrupts strings memory system smp);

/// With emulated chips the mask is the injection policy's, not the host's.
#[test]
fn interrupts_of_emulated_chips() {
    theme("interrupts", IrqchipMode::User);
}

/// With emulated chips beside KVM's local APICs.
#[test]
fn interrupts_of_split_chips() {
    theme("interrupts", IrqchipMode::Split);
}

/// Watchpoints take all debug registers: INT3s stop at the handlers, where this KVM can.
#[test]
fn beside_four_watchpoints_a_step_leaves_no_trace_or_says_so() {
    println!();
    let plan = machine::plan_for(IrqchipMode::Kernel);
    let needed = [Capability::Watchpoint, Capability::BptExit];
    let mut lacking = needed.to_vec();
    lacking.retain(|ability| !plan.is_provided_by(*ability, &Mechanism::HOST));
    for ability in &lacking {
        let why = &plan.entry(*ability).unwrap().finding.detail;
        println!("expected refusal: {ability}: {why}");
    }
    if !lacking.is_empty() {
        return;
    }
    let wanted = wanted();
    let mut chosen = guests();
    chosen.retain(|guest| {
        let theme = guest.name.split('/').next().unwrap();
        let is_short = !is_slow() || guest.name.ends_with("/logs");
        ["fault", "user"].contains(&theme) && is_short && is_wanted(guest, &wanted)
    });
    let found = for_all(&chosen, |guest| {
        let free = ways::free(guest, IrqchipMode::Kernel);
        let (outcome, unguarded) = ways::beside_watchpoints(guest);
        let difference = (free.end == End::Done)
            .then(|| report::difference(&free, &outcome))
            .flatten();
        (unguarded, difference)
    });
    let mut wrong = Vec::new();
    for (guest, (unguarded, difference)) in chosen.iter().zip(&found) {
        if let Some(text) = difference {
            println!("differs: {} unguarded={unguarded} {text}", guest.name);
            if !unguarded {
                wrong.push(format!("{} {text}", guest.name));
            }
        }
    }
    let guarded = found.iter().filter(|(unguarded, _)| !unguarded).count();
    println!(
        "{guarded} of {} guests are guarded in each step",
        found.len()
    );
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(guarded * 2 >= found.len(), "most of them");
}

#[test]
fn every_guest_has_a_test_and_a_name_of_its_own() {
    let mut names = BTreeSet::new();
    for guest in guests() {
        let theme = guest.name.split('/').next().unwrap().to_owned();
        assert!(
            theme == "random" || THEMES.contains(&theme.as_str()),
            "{}",
            guest.name
        );
        assert!(
            names.insert(guest.name.clone()),
            "{} is there twice",
            guest.name
        );
    }
    assert!(names.len() >= 150, "{} guests", names.len());
    for text in wanted() {
        let found = names.iter().any(|name| name.contains(&text));
        assert!(found, "GUEST: no guest is called {text}");
    }
    for flavour in ["kvm_pvm", "kvm_amd", "kvm_intel"] {
        for guest in expected::table(flavour).keys() {
            let name = guest.split('@').next().unwrap();
            assert!(names.contains(name), "{flavour}: there is no {name}");
        }
    }
}

/// Guests that a stepper without a plan leaves as they are on no KVM, and where TF is not hidden by KVM's emulator:
/// the harness finds that.
const NAIVE: [&str; 8] = [
    "fault/undefined_opcode/logs",
    "fault/read_of_a_missing_page/copies",
    "flags/popf_from_a_missing_page",
    "memory/copy_on_write",
    "strings/movsb_from_a_device_into_a_missing_page",
    "strings/rep_movsb_into_a_missing_page",
    "small/undefined_opcode_ends_in_its_handler",
    "user/iret_faults",
];
const NAIVE_IF_NOT_EMULATED: [&str; 8] = [
    "calls/syscall_and_sysret",
    "debug/own_execute_breakpoint",
    "debug/own_single_step",
    "fault/divide_error/not_retried_then_popf",
    "fault/int3/leaves",
    "flags/mov_ss_twice_then_pushf",
    "flags/pushf_64",
    "user/read_of_a_missing_page/signal",
];

#[test]
fn a_stepper_without_a_plan_is_found_out() {
    let wanted = wanted();
    let alone: Vec<Guest> = guests()
        .into_iter()
        .filter(|guest| {
            let is_alone = guest.cpus == 1 && guest.waits.is_empty();
            is_alone && !guest.name.starts_with("random/") && is_wanted(guest, &wanted)
        })
        .collect();
    let table = expected::table(machine::flavour());
    let runs = |guest: &&Guest| {
        table
            .get(guest.name.as_str())
            .is_none_or(|known| !known.contains_key(&'x'))
    };
    let alone: Vec<Guest> = alone.iter().filter(runs).cloned().collect();
    let found = for_all(&alone, |guest| {
        let free = ways::free(guest, IrqchipMode::Kernel);
        (free.end == End::Done)
            .then(|| report::difference(&free, &naive::stepped(guest)))
            .flatten()
    });
    let leaks: BTreeMap<&str, String> = alone
        .iter()
        .zip(found)
        .filter_map(|(guest, found)| Some((guest.name.as_str(), found?)))
        .collect();
    println!();
    for (guest, text) in &leaks {
        println!("naive: {guest} {text}");
    }
    println!("{} of {} guests differ", leaks.len(), alone.len());
    let emulates = machine::flavour() == "kvm_pvm";
    let expected = NAIVE
        .iter()
        .chain(NAIVE_IF_NOT_EMULATED.iter().filter(|_| !emulates));
    for guest in expected.filter(|name| alone.iter().any(|guest| guest.name == **name)) {
        assert!(leaks.contains_key(guest), "{guest} does not differ");
    }
}
