//! The pair: wiring, ports, INTA.

use super::chip::{Chip, Fall, Role};
use super::state::{PicRestoreError, PicState};
use super::{CASCADE, EndedInputs, INPUTS, PicPin};

/// I/O ports.
const MASTER: u16 = 0x20;
const SLAVE: u16 = 0xa0;
const ELCR: u16 = 0x4d0;

/// The answer to the processor's two INTA cycles.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[must_use = "the input is in service: the vector has to be injected"]
pub struct Acknowledge {
    /// The vector, of any value.
    pub vector: u8,
    /// The input, or `None` if no request was left: a spurious interrupt, with vector 7 of the chip
    /// that found nothing.
    pub pin: Option<PicPin>,
    /// Inputs whose service ended at once (automatic EOI).
    pub ended: EndedInputs,
}

/// Two 8259A and their ELCR. See the [module](super).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pic {
    master: Chip,
    slave: Chip,
}

impl Default for Pic {
    fn default() -> Self {
        Self::new()
    }
}

/// Where a byte goes.
#[derive(Clone, Copy)]
enum Port {
    Chip(Role, bool),
    Elcr(Role),
}

impl Port {
    const fn decode(port: u16) -> Option<Self> {
        const MASTER_DATA: u16 = MASTER + 1;
        const SLAVE_DATA: u16 = SLAVE + 1;
        const ELCR2: u16 = ELCR + 1;
        match port {
            MASTER => Some(Self::Chip(Role::Master, false)),
            MASTER_DATA => Some(Self::Chip(Role::Master, true)),
            SLAVE => Some(Self::Chip(Role::Slave, false)),
            SLAVE_DATA => Some(Self::Chip(Role::Slave, true)),
            ELCR => Some(Self::Elcr(Role::Master)),
            ELCR2 => Some(Self::Elcr(Role::Slave)),
            _ => None,
        }
    }
}

impl Pic {
    /// The ports of the pair, with how many follow one another.
    pub const PORTS: [(u16, u16); 3] = [(MASTER, 2), (SLAVE, 2), (ELCR, 2)];

    /// At power-on.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            master: Chip::new(Role::Master),
            slave: Chip::new(Role::Slave),
        }
    }

    /// Back to power-on, except for the inputs, which are the devices'.
    pub fn reset(&mut self) {
        let lines = [self.master.state.lines, self.slave.state.lines];
        *self = Self::new();
        [self.master.state.lines, self.slave.state.lines] = lines;
        self.rewire();
    }

    /// Drives an input, which is asserted (`true`) or not. The same level again is no event.
    pub fn set_line(&mut self, pin: PicPin, up: bool) {
        let (chip, level) = self.input(pin);
        chip.drive(level, up, Fall::Glitch);
        self.rewire();
    }

    /// A rise that stays until it is acknowledged, and then falls: what a device that signals by an
    /// event (an eventfd without resampling) means by it. Nothing if the input is up, or
    /// level-triggered: a level that does not last is no request.
    pub fn pulse(&mut self, pin: PicPin) {
        let (chip, level) = self.input(pin);
        chip.pulse(level);
        self.rewire();
    }

    /// The INTR line to the processor (or to LINT0, or to an IOAPIC's pin 0).
    #[must_use]
    pub fn intr(&self) -> bool {
        self.master.int()
    }

    /// Whether this input is level-triggered.
    #[must_use]
    pub const fn is_level_triggered(&self, pin: PicPin) -> bool {
        let chip = match pin.get() / INPUTS {
            0 => &self.master,
            _ => &self.slave,
        };
        chip.level_inputs() >> (pin.get() % INPUTS) & 1 != 0
    }

    /// Whether this input is up.
    #[must_use]
    pub const fn line(&self, pin: PicPin) -> bool {
        let chip = match pin.get() / INPUTS {
            0 => &self.master,
            _ => &self.slave,
        };
        chip.state.lines >> (pin.get() % INPUTS) & 1 != 0
    }

    /// Whether an edge of this input is latched, and not masked: a further edge would merge with it.
    #[must_use]
    pub const fn is_requested(&self, pin: PicPin) -> bool {
        let chip = match pin.get() / INPUTS {
            0 => &self.master,
            _ => &self.slave,
        };
        (chip.irr() & !chip.state.imr) >> (pin.get() % INPUTS) & 1 != 0
    }

    /// The two INTA cycles. Call it when the interrupt is injected, not before: it cannot be taken
    /// back. Without a request the result is a spurious vector, as on the chips.
    pub fn acknowledge(&mut self) -> Acknowledge {
        let master = self.master.take();
        if master.level != Some(CASCADE) {
            return Acknowledge {
                vector: self.master.vector(master.level),
                pin: master.level.map(PicPin),
                ended: EndedInputs(master.ended.into()),
            };
        }
        // "Cascade mode". The master's ISR bit 2 stays even if the slave finds nothing.
        let slave = self.slave.take();
        self.slave_acknowledged();
        Acknowledge {
            vector: self.slave.vector(slave.level),
            pin: slave.level.map(|level| PicPin(level + INPUTS)),
            ended: EndedInputs(u16::from_le_bytes([
                master.ended & !(1 << CASCADE),
                slave.ended,
            ])),
        }
    }

    /// A guest's write; data is in the order of the ports. Returns the inputs whose service ended.
    pub fn write(&mut self, port: u16, data: &[u8]) -> EndedInputs {
        let mut ended = 0;
        for (port, value) in ports_from(port).zip(data) {
            ended |= match Port::decode(port) {
                Some(Port::Chip(role, a0)) => self.write_byte(role, a0, *value),
                Some(Port::Elcr(role)) => {
                    self.chip(role).set_elcr(*value);
                    0
                }
                None => 0,
            };
        }
        self.rewire();
        EndedInputs(ended)
    }

    fn write_byte(&mut self, role: Role, a0: bool, value: u8) -> u16 {
        let chip = self.chip(role);
        if a0 {
            chip.data(value);
            return 0;
        }
        let ended = chip.command(value);
        match role {
            Role::Master => u16::from(ended & !(1 << CASCADE)),
            Role::Slave => u16::from_le_bytes([0, ended]),
        }
    }

    /// A guest's read. Ports that are not the pair's read 0xff. Returns the inputs whose service
    /// ended, by a poll in automatic EOI mode.
    pub fn read(&mut self, port: u16, data: &mut [u8]) -> EndedInputs {
        let mut ended = 0;
        for (port, value) in ports_from(port).zip(data) {
            *value = match Port::decode(port) {
                Some(Port::Chip(role, a0)) => {
                    let (value, byte_ended) = self.read_byte(role, a0);
                    ended |= byte_ended;
                    value
                }
                Some(Port::Elcr(role)) => self.chip(role).state.elcr,
                None => u8::MAX,
            };
        }
        EndedInputs(ended)
    }

    fn read_byte(&mut self, role: Role, a0: bool) -> (u8, u16) {
        let chip = self.chip(role);
        if !core::mem::take(&mut chip.state.poll) {
            return (chip.register(a0), 0);
        }
        // "Poll command": the next read is an INTA cycle of this chip alone.
        let taken = chip.take();
        let value = taken.level.map_or(0, |level| 0x80 | level);
        let ended = match role {
            Role::Master => u16::from(taken.ended & !(1 << CASCADE)),
            Role::Slave => {
                self.slave_acknowledged();
                u16::from_le_bytes([0, taken.ended])
            }
        };
        (value, ended)
    }

    /// The state as plain data.
    #[must_use]
    pub const fn save(&self) -> PicState {
        PicState {
            version: PicState::VERSION,
            master: self.master.state,
            slave: self.slave.state,
        }
    }

    /// Takes a saved state over.
    ///
    /// # Errors
    /// If it is not one that a pair can be in; then nothing has changed.
    pub fn restore(&mut self, state: &PicState) -> Result<(), PicRestoreError> {
        let (master, slave) = state.validate()?;
        *self = Self { master, slave };
        Ok(())
    }

    const fn chip(&mut self, role: Role) -> &mut Chip {
        match role {
            Role::Master => &mut self.master,
            Role::Slave => &mut self.slave,
        }
    }

    const fn input(&mut self, pin: PicPin) -> (&mut Chip, u8) {
        let role = match pin.get() / INPUTS {
            0 => Role::Master,
            _ => Role::Slave,
        };
        (self.chip(role), pin.get() % INPUTS)
    }

    /// The slave's INT output is the master's input 2. A fall there is the slave's doing, who
    /// keeps a glitch on its own inputs up by itself.
    fn rewire(&mut self) {
        let int = self.slave.int();
        self.master.drive(CASCADE, int, Fall::Quiet);
    }

    /// INT falls with the INTA cycle and rises again for the next request: the master sees an edge for
    /// each.
    fn slave_acknowledged(&mut self) {
        self.master.drive(CASCADE, false, Fall::Quiet);
        self.rewire();
    }
}

/// The bus splits a wide access into bytes at ascending ports.
fn ports_from(port: u16) -> impl Iterator<Item = u16> {
    (0u16..).map(move |index| port.wrapping_add(index))
}
