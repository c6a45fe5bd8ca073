use proptest::prelude::*;

use super::*;

const NOW_NS: i64 = 50_000_000_000;

fn at(tick: u64) -> GuestTime {
    PitTicks(tick).time().unwrap()
}

/// As KVM makes it: every channel with count 0, which is 0x10000, in no mode.
fn unprogrammed() -> kvm_pit_state2 {
    let channel = kvm_pit_channel_state {
        count: 0x1_0000,
        mode: 0xff,
        gate: 1,
        ..Default::default()
    };
    kvm_pit_state2 {
        channels: [
            channel,
            channel,
            kvm_pit_channel_state { gate: 0, ..channel },
        ],
        ..Default::default()
    }
}

fn programmed(mode: u8, count: u32) -> kvm_pit_channel_state {
    kvm_pit_channel_state {
        count,
        read_state: 3,
        write_state: 3,
        rw_mode: 3,
        mode,
        gate: 1,
        count_load_time: NOW_NS,
        ..Default::default()
    }
}

fn with(channel: usize, state: kvm_pit_channel_state) -> kvm_pit_state2 {
    let mut kvm = unprogrammed();
    kvm.channels[channel] = state;
    kvm
}

fn restored(kvm: &kvm_pit_state2) -> Pit {
    let state = PitState::from_kvm(kvm, at(1000), NOW_NS).unwrap();
    let mut pit = Pit::new();
    pit.restore(&state).unwrap();
    pit
}

#[test]
fn kvms_timer_at_power_on_is_ours() {
    let mut ours = Pit::new();
    ours.reset(at(1000));
    assert_eq!(restored(&unprogrammed()), ours);
}

#[test]
fn channel_0_begins_its_period_again_as_in_kvm() {
    let mut channel = programmed(2, 1000);
    channel.count_load_time = 0;
    let mut pit = restored(&with(0, channel));
    assert_eq!(pit.next_deadline(), Some(at(2000)));
    assert_eq!(pit.irq0(at(2000)).rises, 1);
}

#[test]
fn channel_2_keeps_its_phase() {
    // 300 ticks ago.
    let mut channel = programmed(2, 1000);
    channel.count_load_time = NOW_NS - 300 * 88_000 / 105 - 1;
    let mut pit = restored(&with(2, channel));
    let mut data = [0; 2];
    pit.write(at(1000), 0x43, &[0x80]);
    pit.read(at(1000), 0x42, &mut data[..1]);
    pit.read(at(1000), 0x42, &mut data[1..]);
    assert_eq!(u16::from_le_bytes(data), 700);
    let back = pit.save().to_kvm(NOW_NS);
    let again = PitState::from_kvm(&back, at(1000), NOW_NS).unwrap();
    assert_eq!(again.channels[2], pit.save().channels[2]);
}

#[test]
fn a_one_shot_of_channel_2_that_is_over_shows_its_output() {
    let mut channel = programmed(0, 1000);
    channel.count_load_time = 0;
    let mut pit = restored(&with(2, channel));
    let mut data = [0];
    pit.read(at(1000), 0x61, &mut data);
    assert_eq!(data[0] & 0x21, 0x21);
}

#[test]
fn flip_flops_and_latches_go_over_and_come_back() {
    for (read_state, write_state, count_latched) in [
        (3, 3, 0),
        (4, 3, 0),
        (3, 4, 0),
        (3, 3, 3),
        (3, 3, 2),
        (3, 4, 2),
    ] {
        let channel = kvm_pit_channel_state {
            read_state,
            write_state,
            count_latched,
            write_latch: if write_state == 4 { 0x5a } else { 0 },
            latched_count: if count_latched == 0 { 0 } else { 0x1234 },
            status_latched: 1,
            status: 0xb4,
            ..programmed(2, 0x2345)
        };
        let kvm = with(1, channel);
        let back = restored(&kvm).save().to_kvm(NOW_NS);
        assert_eq!(back.channels[1], channel);
    }
}

#[test]
fn a_bcd_count_is_its_digits() {
    let channel = kvm_pit_channel_state {
        bcd: 1,
        ..programmed(2, 0x1234)
    };
    let pit = restored(&with(0, channel));
    assert_eq!(pit.save().channels[0].reload, 1234);
    assert_eq!(pit.save().to_kvm(NOW_NS).channels[0].count, 0x1234);
    let channel = kvm_pit_channel_state {
        bcd: 1,
        ..programmed(2, 0x1_0000)
    };
    let pit = restored(&with(0, channel));
    assert_eq!(pit.save().channels[0].reload, 10_000);
    assert_eq!(pit.save().to_kvm(NOW_NS).channels[0].count, 0x1_0000);
}

#[test]
fn the_speaker_bit_goes_over_and_comes_back() {
    let kvm = kvm_pit_state2 {
        flags: 2,
        ..unprogrammed()
    };
    let mut pit = restored(&kvm);
    let mut data = [0];
    pit.read(at(1000), 0x61, &mut data);
    assert_eq!(data[0] & 0x03, 0x02);
    assert_eq!(pit.save().to_kvm(NOW_NS).flags, 2);
}

#[test]
fn hostile_values_are_refused_by_name() {
    type Break = fn(&mut kvm_pit_state2);
    let cases: [(&str, &str, Break); 16] = [
        ("", "flags", |kvm| kvm.flags = 1),
        ("", "flags", |kvm| kvm.flags = 4),
        ("", "reserved", |kvm| kvm.reserved[8] = 1),
        ("channels[0].", "count", |kvm| kvm.channels[0].count = 0),
        ("channels[1].", "count", |kvm| {
            kvm.channels[1].count = 0x1_0001
        }),
        ("channels[0].", "mode", |kvm| kvm.channels[0].mode = 6),
        ("channels[0].", "gate", |kvm| kvm.channels[0].gate = 0),
        ("channels[2].", "gate", |kvm| kvm.channels[2].gate = 2),
        ("channels[0].", "bcd", |kvm| kvm.channels[0].bcd = 2),
        ("channels[0].", "rw_mode", |kvm| kvm.channels[0].rw_mode = 0),
        ("channels[0].", "rw_mode", |kvm| kvm.channels[0].rw_mode = 4),
        ("channels[0].", "read_state", |kvm| {
            kvm.channels[0].read_state = 1
        }),
        ("channels[0].", "write_state", |kvm| {
            kvm.channels[0].write_state = 5
        }),
        ("channels[0].", "count_latched", |kvm| {
            kvm.channels[0].count_latched = 4
        }),
        ("channels[0].", "status_latched", |kvm| {
            kvm.channels[0].status_latched = 9
        }),
        ("channels[2].", "count_load_time", |kvm| {
            kvm.channels[2].count_load_time = i64::MAX;
        }),
    ];
    for (place, field, spoil) in cases {
        let mut kvm = with(0, programmed(2, 100));
        kvm.channels[2] = programmed(3, 100);
        assert!(PitState::from_kvm(&kvm, at(0), NOW_NS).is_ok());
        spoil(&mut kvm);
        let error = PitState::from_kvm(&kvm, at(0), NOW_NS).unwrap_err();
        assert_eq!((error.place, error.field), (place, field));
    }
}

proptest! {
    /// Whatever KVM's structure holds, it is refused or becomes a state that is taken over, and
    /// what was taken over is one that KVM's fields describe.
    #[test]
    fn any_structure_is_refused_or_valid(
        count in prop_oneof![1u32..0x1_0001, any::<u32>()],
        small in proptest::array::uniform9(prop_oneof![8 => 0u8..5, 1 => any::<u8>()]),
        load_time in prop_oneof![(0i64..1 << 30).prop_map(|ns| NOW_NS - ns), any::<i64>()],
        channel in 0usize..3,
    ) {
        let [count_latched, status_latched, read_state, write_state, rw_mode, mode, bcd, gate, byte] = small;
        let kvm = with(channel, kvm_pit_channel_state {
            count, count_latched, status_latched, read_state, write_state, rw_mode, mode, bcd, gate,
            write_latch: byte,
            status: byte,
            latched_count: 0x1234,
            count_load_time: load_time,
        });
        if let Ok(state) = PitState::from_kvm(&kvm, at(1000), NOW_NS) {
            let mut pit = Pit::new();
            prop_assert_eq!(pit.restore(&state), Ok(()));
            let back = state.to_kvm(NOW_NS);
            let again = PitState::from_kvm(&back, at(1000), NOW_NS);
            prop_assert!(again.is_ok(), "{:?}", again);
        }
    }
}
