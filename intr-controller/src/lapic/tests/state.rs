//! Saved state: exact, and refused whole if it is not one.

use super::*;
use crate::{PolicyState, RestoreError};

/// Mid-handler, with an armed timer, errors, pins and everything else away from reset.
fn busy() -> Lapic {
    let mut lapic = xapic();
    for (offset, value) in [
        (ID, 0x0700_0000),
        (TPR, 0x12),
        (LDR, 0x0400_0000),
        (DFR, 0x0fff_ffff),
        (SVR, 0x13fe),
        (ICR2, 0x0500_0000),
        (ICR, 0x4041),
        (LVT_TIMER, 0x2_00ec),
        (LVT_LINT0, 0x8081),
        (LVT_LINT1, 0x400),
        (TDCR, 3),
        (TMICT, 1000),
    ] {
        let _ = write(&mut lapic, offset, value);
    }
    let _ = lapic.accept(&edge(0x01));
    let _ = write(&mut lapic, ESR, 0);
    let _ = read(&mut lapic, 0x00);
    let _ = lapic.set_lint0(true);
    let _ = lapic.set_lint1(true);
    let _ = lapic.accept(&level(0xa1));
    let _ = take(&mut lapic);
    let _ = take(&mut lapic);
    let _ = lapic.accept(&edge(0xb1));
    let _ = lapic.accept(&message(DeliveryMode::ExtInt, 0));
    let _ = lapic.accept(&message(DeliveryMode::Smi, 0));
    let _ = lapic.accept(&message(DeliveryMode::Init, 0));
    lapic
}

#[test]
fn each_field_is_saved_as_itself() {
    let state = busy().save();
    let LapicState {
        version,
        apic_id,
        apic_base,
        xapic_id,
        tpr,
        spurious,
        ldr,
        dfr,
        command,
        lvt,
        error_status,
        errors,
        in_service,
        level_triggered,
        policy,
        timer_initial,
        timer_divide,
        timer_expires_ns,
        tsc_deadline,
        lint,
        ext_int_message,
        init_pending,
        sipi_pending,
        waiting_for_sipi,
    } = state;
    assert_eq!((version, apic_id, apic_base), (2, 3, 0xfee0_0900));
    assert_eq!((xapic_id, tpr, spurious), (7, 0x12, 0x13fe));
    assert_eq!((ldr, dfr, command), (4, 0, 0x0500_0000_0000_4041));
    assert_eq!(
        lvt,
        [
            0x2_00ec, 0x1_0000, 0x1_0000, 0xc081, 0x400, 0x1_0000, 0x1_0000
        ]
    );
    assert_eq!((error_status, errors), (0x40, 0x80));
    assert_eq!(in_service, [0, 0, 1 << 0x21, 0]);
    assert_eq!(level_triggered, [0, 0, 1 << 0x21 | 1 << 1, 0]);
    assert_eq!(policy.fixed, [0, 0, 1 << 0x31 | 1 << 1, 0]);
    assert_eq!((policy.nmis, policy.smi, policy.ext_int), (0, true, true));
    assert_eq!((timer_initial, timer_divide), (1000, 3));
    assert_eq!((timer_expires_ns, tsc_deadline), (Some(16_000), 0));
    assert_eq!((lint, ext_int_message), ([true, true], true));
    assert_eq!((init_pending, sipi_pending), (true, None));
    assert!(!waiting_for_sipi);
}

#[test]
fn a_busy_apic_is_restored_exactly() {
    let lapic = busy();
    let mut other = Lapic::new(config());
    other.restore(&lapic.save()).unwrap();
    assert_eq!(other, lapic);
}

#[test]
fn a_stopped_guests_timer_has_lost_nothing() {
    let mut lapic = xapic();
    let _ = write(&mut lapic, LVT_TIMER, 0xec);
    let _ = write(&mut lapic, TMICT, 1000);
    let state = lapic.save();
    // A year later on another machine, at the same guest time.
    let mut other = Lapic::new(config());
    other.restore(&state).unwrap();
    assert_eq!(read_at(&mut other, TMCCT, 500), 750);
    assert_eq!(other.advance(at(1999)), 0);
    assert_eq!(other.advance(at(2000)), 1);
}

#[test]
fn a_timer_that_was_due_when_saved_fires_once_afterwards() {
    let mut lapic = xapic();
    let _ = write(&mut lapic, LVT_TIMER, 0xec);
    let _ = write(&mut lapic, TMICT, 10);
    let mut other = Lapic::new(config());
    other.restore(&lapic.save()).unwrap();
    assert_eq!(other.advance(at(5000)), 1);
    assert_eq!(other.advance(at(9000)), 0);
}

#[test]
fn a_start_up_ipi_that_waits_while_the_guest_makes_itself_the_bootstrap_processor_is_saved() {
    let mut lapic = with(|config| config.bootstrap = false);
    let _ = lapic.accept(&message(DeliveryMode::Init, 0));
    let _ = lapic.accept(&message(DeliveryMode::StartUp, 8));
    let _ = lapic.set_apic_base(0xfee0_0900, at(0)).unwrap();
    let mut other = with(|config| config.bootstrap = false);
    other.restore(&lapic.save()).unwrap();
    assert_eq!(other, lapic);
    let init = Startup::Init {
        wait_for_sipi: false,
    };
    assert_eq!(other.take_startup(), Some(init));
    assert_eq!(other.take_startup(), None);
}

/// A field's change, and the name that the refusal must give.
type Damage = (&'static str, fn(&mut LapicState));

#[test]
fn openvmm_defect_a_hostile_state_is_refused_by_field_and_changes_nothing() {
    let damages: &[Damage] = &[
        ("version", |s| s.version = 1),
        ("apic_id", |s| s.apic_id = 4),
        ("apic_base", |s| s.apic_base = 0xfee0_0500),
        ("apic_base", |s| s.apic_base |= 1),
        ("apic_base", |s| s.apic_base |= 1 << 46),
        ("xapic_id", |s| s.apic_base = 0xfee0_0d00),
        ("ldr", |s| {
            s.apic_base = 0xfee0_0d00;
            s.xapic_id = 3;
        }),
        ("dfr", |s| s.dfr = 16),
        ("spurious", |s| s.spurious |= 1 << 10),
        ("command", |s| s.command |= 1 << 12),
        ("lvt", |s| s.lvt[0] |= 1 << 12),
        ("lvt", |s| s.lvt[1] |= 1 << 14),
        ("lvt", |s| s.lvt[4] |= 1 << 14),
        ("lvt", |s| s.lvt[5] |= 1 << 8),
        ("lvt", |s| s.spurious = 0xff),
        ("error_status", |s| s.error_status |= 1),
        ("errors", |s| s.errors |= 1 << 8),
        ("in_service", |s| s.in_service[0] = 1),
        ("level_triggered", |s| s.level_triggered[0] = 0x8000),
        ("policy", |s| s.policy.nmis = 3),
        ("policy", |s| s.policy.fixed[0] = 1),
        ("policy", |s| s.policy.counters.arrived += 1),
        ("timer_divide", |s| s.timer_divide = 4),
        ("timer_expires_ns", |s| s.timer_initial = 0),
        ("timer_expires_ns", |s| s.lvt[0] = 0x4_00ec),
        ("timer_expires_ns", |s| {
            s.apic_base = 0xfee0_0100;
            s.xapic_id = 3;
        }),
        ("tsc_deadline", |s| s.tsc_deadline = 1),
        ("policy.ext_int", |s| {
            s.ext_int_message = false;
        }),
        ("sipi_pending", |s| {
            s.init_pending = false;
            s.sipi_pending = Some(1);
        }),
    ];
    for (field, damage) in damages {
        let mut state = busy().save();
        damage(&mut state);
        let mut lapic = xapic();
        let before = lapic.clone();
        let error = lapic.restore(&state).unwrap_err();
        let text = alloc::string::ToString::to_string(&error);
        assert!(text.starts_with(field), "{field}: {text}");
        assert_eq!(lapic, before, "{field}");
    }
}

#[test]
fn the_policys_refusal_is_the_source() {
    let mut state = busy().save();
    state.policy = PolicyState {
        version: 9,
        ..state.policy
    };
    assert_eq!(
        xapic().restore(&state),
        Err(LapicRestoreError::Policy(RestoreError::Version {
            found: 9
        }))
    );
}

#[test]
fn a_state_of_another_configuration_is_refused() {
    let mut state = x2apic().save();
    state.lvt[0] = 0x5_0000;
    let mut lapic = with(|config| config.tsc_deadline = false);
    assert!(lapic.restore(&state).is_err());
    let mut lapic = with(|config| config.x2apic = false);
    assert!(lapic.restore(&x2apic().save()).is_err());
    let mut lapic = with(|config| config.eoi_suppression = false);
    assert!(lapic.restore(&busy().save()).is_err());
}

#[cfg(feature = "serde")]
#[test]
fn json_comes_back_exactly_and_unknown_fields_are_refused() {
    let state = busy().save();
    let json = serde_json::to_string(&state).unwrap();
    assert_eq!(serde_json::from_str::<LapicState>(&json).unwrap(), state);
    let odd = json.replacen('{', "{\"masked\":true,", 1);
    assert!(serde_json::from_str::<LapicState>(&odd).is_err());
}
