//! Properties of every sequence of bytes.

use super::*;
use proptest::prelude::*;

/// A stream of good packets, bad ones and junk.
fn stream() -> impl Strategy<Value = Vec<u8>> {
    let packet = prop_oneof![
        4 => prop_oneof![
            Just("g"), Just("?"), Just("m8000,10"), Just("x8000,10"), Just("qC"), Just("Hg1"),
            Just("Hg2"), Just("Hg0"), Just("Z0,8001,1"), Just("z0,8001,1"), Just("Z1,8002,1"),
            Just("Z2,9000,4"), Just("vCont;s:1"), Just("vCont;s:2"), Just("vCont;c"),
            Just("vCont;r8000,8004:1"), Just("qSupported:a"), Just("qRcmd,63617073"),
            Just("M9000,1:cc"), Just("P0=0100000000000000"), Just("QStartNoAckMode"),
            Just("qfThreadInfo"), Just("s"), Just("c"), Just("Qqemu.sstep=0"),
        ].prop_map(|text| frame(text.as_bytes())),
        1 => Just(frame(b"D")),
        1 => Just(b"\x03".to_vec()),
        1 => Just(b"+".to_vec()),
        1 => Just(b"-".to_vec()),
        1 => proptest::collection::vec(any::<u8>(), 0..12),
        1 => proptest::collection::vec(any::<u8>(), 0..12).prop_map(|body| frame(&body)),
    ];
    proptest::collection::vec(packet, 0..40).prop_map(|parts| parts.concat())
}

fn counting() -> Machine {
    let mut program = vec![code::NOP; 8];
    program.extend([code::INC_RAX, code::STORE, code::SPIN]);
    machine(2, &program).with_registers(|file| file.core.rdi = 0x9000)
}

/// What the guest looks like, but for what packets of the stream may write.
fn breakpoints_left(rig: &mut Rig) -> usize {
    let code = rig.machine().memory().get(ENTRY, 16);
    code.iter().filter(|byte| **byte == 0xcc).count()
}

proptest! {
    // Each case is a session of hundreds of packets.
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_split_of_any_stream_gives_the_same_output_and_plans(
        stream in stream(),
        cuts in proptest::collection::vec(1usize..30, 1..30),
    ) {
        let mut whole = Rig::new(counting());
        // Actions are taken between bytes in both cases: what a guest has done when the next
        // packet comes is not the splitting's business.
        let mut expected = Vec::new();
        for byte in &stream {
            expected.extend(whole.bytes(std::slice::from_ref(byte)));
        }
        let mut parts = Rig::new(counting());
        let mut seen = Vec::new();
        // A resume or an interrupt ends a part: what is sent behind it meets a guest that has
        // done it, or one that has not.
        let ends: std::collections::BTreeSet<usize> = (0..)
            .zip(&stream)
            .filter_map(|(at, byte)| match byte {
                b'#' => Some(at + 3),
                3 => Some(at + 1),
                _ => None,
            })
            .collect();
        let mut at = 0;
        for cut in cuts.iter().cycle() {
            if at >= stream.len() {
                break;
            }
            let end = ends.range(at + 1..).next().map_or(stream.len(), |end| *end);
            let end = end.min(at + cut).min(stream.len());
            seen.extend(parts.bytes(&stream[at..end]));
            at = end;
        }
        prop_assert_eq!(expected, seen);
        prop_assert_eq!(whole.plans, parts.plans);
    }

    #[test]
    fn whatever_comes_a_stopped_guest_is_whole_and_a_gone_client_is_released_once(
        streams in proptest::collection::vec((stream(), any::<bool>()), 1..4),
    ) {
        let mut rig = Rig::with(counting(), common::run_on(&[]));
        for (index, (stream, running)) in streams.iter().enumerate() {
            if index > 0 {
                rig.session.attach(if *running { GuestState::Running } else { GuestState::Stopped });
                rig.act();
            }
            for part in stream.chunks(7) {
                rig.bytes(part);
                if rig.running.is_none() {
                    prop_assert_eq!(breakpoints_left(&mut rig), 0);
                }
            }
            rig.session.disconnected();
            rig.act();
            prop_assert_eq!(rig.releases + rig.kills, index + 1);
            prop_assert!(rig.running.is_none());
            prop_assert_eq!(breakpoints_left(&mut rig), 0);
            prop_assert!(!rig.session.is_attached());
        }
    }

    /// By default, a guest that no client has continued is as it was.
    #[test]
    fn whatever_a_client_did_a_guest_that_it_found_stopped_and_stopped_again_stays_stopped(
        stream in stream(),
    ) {
        let mut rig = Rig::new(counting());
        for part in stream.chunks(7) {
            rig.bytes(part);
        }
        let detached = rig.session.is_closing() && rig.kills == 0;
        let runs = rig.running.is_some();
        rig.session.disconnected();
        rig.act();
        prop_assert!(!rig.session.is_attached());
        prop_assert!(rig.running.is_none());
        prop_assert_eq!(breakpoints_left(&mut rig), 0);
        if rig.releases == 0 && rig.kills == 0 {
            common::assert_disarmed(rig.machine());
            prop_assert!(!detached);
        } else if rig.kills == 0 {
            prop_assert!(runs || detached);
        }
    }

    #[test]
    fn garbage_never_panics(garbage in proptest::collection::vec(any::<u8>(), 0..2000)) {
        let mut rig = Rig::with(counting(), common::run_on(&[]));
        rig.bytes(&garbage);
        rig.session.disconnected();
        rig.act();
        prop_assert_eq!(rig.releases, 1);
    }

    #[test]
    fn framed_garbage_never_panics(
        bodies in proptest::collection::vec("[?gGmMxXpPZzHTvDqQcs][ -~]{0,24}", 0..40),
    ) {
        let mut rig = Rig::new(counting());
        for body in bodies {
            rig.bytes(&frame(body.as_bytes()));
        }
        rig.session.disconnected();
        rig.act();
        prop_assert_eq!(breakpoints_left(&mut rig), 0);
        prop_assert_eq!(rig.machine().memory().get(0, RAM).len(), RAM);
    }
}
