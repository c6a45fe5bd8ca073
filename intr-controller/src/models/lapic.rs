//! A small obvious model of the local APIC, and random operations that run both side by side.
//!
//! For this crate's property tests and for fuzz targets; not covered by semver.

use alloc::collections::BTreeSet;
use core::num::NonZeroU64;

use crate::{
    Acceptance, Decision, DeliveryMode, Effect, Event, GuestTime, InterruptMessage, Lapic,
    LapicConfig, Readiness, Refusal, TriggerMode,
};

/// One operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub enum LapicAction {
    /// A fixed interrupt arrives: vector, level-triggered.
    Fixed(u8, bool),
    /// An NMI arrives.
    Nmi,
    /// The task priority is written.
    TaskPriority(u8),
    /// The software-enable bit is written.
    Enable(bool),
    /// A vCPU that is open, or open but masked, takes the event that the decision names.
    Enter(bool),
    /// EOI is written.
    EndOfInterrupt,
    /// The timer entry: periodic, masked. The vector is 0xec.
    Timer(bool, bool),
    /// The initial count is written.
    Count(u8),
    /// The divide configuration is written.
    Divide(u8),
    /// So many nanoseconds pass, and the timer is looked at, or not.
    Pass(u8, bool),
    /// Save, and restore into another.
    SaveRestore,
    /// Any load from the register page: offset, size.
    Load(u16, u8),
}

/// The timer by counting: one call for each nanosecond.
#[derive(Debug, Default)]
struct Counter {
    periodic: bool,
    masked: bool,
    initial: u32,
    divide: u8,
    count: u32,
    /// Nanoseconds until the next count.
    phase: u32,
}

impl Counter {
    fn divisor(&self) -> u32 {
        match self.divide & 0b1011 {
            0b0000 => 2,
            0b0001 => 4,
            0b0010 => 8,
            0b0011 => 16,
            0b1000 => 32,
            0b1001 => 64,
            0b1010 => 128,
            _ => 1,
        }
    }

    /// A nanosecond; whether it expired.
    fn tick(&mut self) -> bool {
        if self.count == 0 {
            return false;
        }
        self.phase -= 1;
        if self.phase > 0 {
            return false;
        }
        self.phase = self.divisor();
        self.count -= 1;
        if self.count > 0 {
            return false;
        }
        if self.periodic {
            self.count = self.initial;
        }
        true
    }

    fn start(&mut self, initial: u32) {
        self.initial = initial;
        self.count = initial;
        self.phase = self.divisor();
    }
}

/// What the local APIC must be.
#[derive(Debug, Default)]
struct Model {
    irr: BTreeSet<u8>,
    isr: BTreeSet<u8>,
    tmr: BTreeSet<u8>,
    nmis: u8,
    tpr: u8,
    enabled: bool,
    timer: Counter,
    now: u64,
    delivered: u64,
}

impl Model {
    fn accept(&mut self, vector: u8, level: bool) -> Acceptance {
        if !self.enabled {
            return Acceptance::Refused(Refusal::SoftwareDisabled);
        }
        if vector < 16 {
            return Acceptance::Refused(Refusal::IllegalVector);
        }
        if level {
            self.tmr.insert(vector);
        } else {
            self.tmr.remove(&vector);
        }
        if self.irr.insert(vector) {
            Acceptance::Accepted
        } else {
            Acceptance::Merged
        }
    }

    fn class(&self) -> u8 {
        let in_service = self.isr.last().map_or(0, |vector| vector >> 4);
        in_service.max(self.tpr >> 4)
    }

    /// The event that an open vCPU takes.
    fn next(&self, masked: bool) -> Option<Event> {
        if masked {
            return None;
        }
        if self.nmis > 0 {
            return Some(Event::Nmi);
        }
        let highest = *self.irr.last()?;
        let vector = crate::Vector::new(highest).ok()?;
        (highest >> 4 > self.class()).then_some(Event::Fixed(vector))
    }

    fn pass(&mut self, ns: u8) {
        for _ in 0..ns {
            self.now += 1;
            if self.timer.tick() && !self.timer.masked {
                let _ = self.accept(0xec, false);
            }
        }
    }
}

/// The local APIC under test with its model.
#[derive(Debug)]
pub struct LapicPair {
    lapic: Lapic,
    model: Model,
}

impl Default for LapicPair {
    fn default() -> Self {
        let config = LapicConfig::new(0, true, NonZeroU64::MIN);
        let mut lapic = Lapic::new(config);
        let _ = lapic.mmio_write(0xf0, &0x1ffu32.to_le_bytes(), GuestTime::ZERO);
        Self {
            lapic,
            model: Model {
                enabled: true,
                timer: Counter {
                    masked: true,
                    ..Counter::default()
                },
                ..Model::default()
            },
        }
    }
}

impl LapicPair {
    /// The local APIC.
    #[must_use]
    pub const fn lapic(&self) -> &Lapic {
        &self.lapic
    }

    /// Applies one operation to both and compares.
    ///
    /// # Errors
    /// With what differs.
    pub fn apply(&mut self, action: LapicAction) -> Result<(), &'static str> {
        let Self { lapic, model } = self;
        let now = GuestTime::from_ns(model.now);
        let write = |lapic: &mut Lapic, offset, value: u32| {
            lapic.mmio_write(offset, &value.to_le_bytes(), now)
        };
        match action {
            LapicAction::Fixed(vector, level) => {
                let message = InterruptMessage {
                    delivery_mode: DeliveryMode::Fixed,
                    trigger_mode: TriggerMode::from_bit(level),
                    level: true,
                    vector,
                    ..InterruptMessage::default()
                };
                // What is due came first.
                lapic.advance(now);
                if lapic.accept(&message) != model.accept(vector, level) {
                    return Err("acceptance");
                }
            }
            LapicAction::Nmi => {
                let message = InterruptMessage {
                    delivery_mode: DeliveryMode::Nmi,
                    ..InterruptMessage::default()
                };
                let _ = lapic.accept(&message);
                model.nmis = 2.min(model.nmis + 1);
            }
            LapicAction::TaskPriority(value) => {
                let _ = write(lapic, 0x80, value.into());
                model.tpr = value;
            }
            LapicAction::Enable(enable) => {
                let _ = write(lapic, 0xf0, if enable { 0x1ff } else { 0xff });
                model.enabled = enable;
                model.timer.masked |= !enable;
            }
            LapicAction::Enter(masked) => {
                lapic.advance(now);
                let decision = lapic.decide(&Readiness {
                    masked,
                    ..Readiness::OPEN
                });
                let told = match decision {
                    Decision::Inject(event) => Some(event),
                    _ => None,
                };
                if told != model.next(masked) {
                    return Err("decision");
                }
                if let Some(event) = told {
                    lapic.injected(event).map_err(|_| "injection")?;
                    model.delivered += 1;
                    if let Event::Fixed(vector) = event {
                        model.irr.remove(&vector.get());
                        model.isr.insert(vector.get());
                    } else {
                        model.nmis -= 1;
                    }
                }
            }
            LapicAction::EndOfInterrupt => {
                let effect = write(lapic, 0xb0, 0);
                let ended = model.isr.pop_last();
                let broadcast = ended.filter(|vector| model.tmr.contains(vector));
                let expected = broadcast
                    .and_then(|vector| crate::Vector::new(vector).ok())
                    .map_or(Effect::None, Effect::EoiBroadcast);
                if effect != expected {
                    return Err("EOI");
                }
            }
            LapicAction::Timer(periodic, masked) => {
                let bits = u32::from(periodic) << 17 | u32::from(masked) << 16;
                let _ = write(lapic, 0x320, bits | 0xec);
                model.timer.periodic = periodic;
                model.timer.masked = masked || !model.enabled;
            }
            LapicAction::Count(count) => {
                let _ = write(lapic, 0x380, count.into());
                model.timer.start(count.into());
            }
            LapicAction::Divide(divide) => {
                // While it stands; what a running one does is rounding, and has its own test.
                if model.timer.count == 0 {
                    let _ = write(lapic, 0x3e0, divide.into());
                    model.timer.divide = divide;
                }
            }
            LapicAction::Pass(ns, look) => {
                model.pass(ns);
                if look {
                    lapic.advance(GuestTime::from_ns(model.now));
                }
            }
            LapicAction::SaveRestore => {
                let mut other = Lapic::new(*lapic.config());
                if other.restore(&lapic.save()).is_err() || other != *lapic {
                    return Err("save and restore");
                }
                *lapic = other;
            }
            LapicAction::Load(offset, size) => {
                let mut data = [0; 16];
                let (data, _) = data.split_at_mut(usize::from(size % 17));
                lapic.mmio_read(offset % 0x1000, data, now);
            }
        }
        self.compare()
    }

    /// The whole visible state, after every operation.
    fn compare(&mut self) -> Result<(), &'static str> {
        let Self { lapic, model } = self;
        let now = GuestTime::from_ns(model.now);
        // The count first: looking at it brings the timer up to date.
        let mut count = [0; 4];
        lapic.mmio_read(0x390, &mut count, now);
        if u32::from_le_bytes(count) != model.timer.count {
            return Err("the current count");
        }
        let mut sets = [
            (*lapic.policy().pending().fixed(), &model.irr, "IRR"),
            (*lapic.in_service(), &model.isr, "ISR"),
            (*lapic.level_triggered(), &model.tmr, "TMR"),
        ]
        .into_iter();
        if let Some((_, _, name)) = sets.find(|(set, expected, _)| {
            let listed: BTreeSet<u8> = set.iter().map(crate::Vector::get).collect();
            listed != **expected
        }) {
            return Err(name);
        }
        if lapic.priority().class() != model.class() {
            return Err("the priority");
        }
        if lapic.policy().pending().nmis() != model.nmis {
            return Err("NMIs");
        }
        let counters = lapic.policy().counters();
        let waiting = lapic.policy().pending().len();
        if counters.delivered != model.delivered
            || counters.arrived != counters.merged + counters.delivered + waiting
        {
            return Err("the totals");
        }
        Ok(())
    }
}
