//! The 8254 programmable interval timer, and port 0x61, which gates its channel 2.
//!
//! Channel 0's output is ISA interrupt 0, channel 1's refreshed memory once, channel 2's is the
//! speaker. The clock is 105/88 MHz (14.31818 MHz / 12) exactly, and its ticks are counted from
//! [`GuestTime::ZERO`](crate::GuestTime::ZERO). What a counter shows at a time is computed, never
//! counted: a call after an hour costs what one after a microsecond does.
//!
//! # What holds where the data sheet leaves room
//!
//! - **A count is loaded by the tick after the write** (or after the trigger), and counts from the
//!   next one: modes 0 and 4 end N+1 ticks after the write. KVM's counters have no such tick.
//! - **A count of 1 is illegal in modes 2 and 3**: the output stays high. A BCD count with digits
//!   above 9 is taken at the value of its digits. KVM counts BCD as binary.
//! - **An output that rises because of a control word is a rise**: the chip has no other output.
//!   KVM's timer knows only terminal counts.
//! - **At power-on** nothing counts and outputs are high; 0x43 reads 0xff.
//! - **Short periods**: two ticks are as low as it goes, which is 600,000 interrupts a second. What
//!   was missed is [counted](Irq0::rises); what becomes of it is the policy of a [`TickQueue`].
//! - **Accesses wider than a byte** are split by the bus into bytes at ascending ports; bytes beside
//!   the ports read 0xff.

mod channel;
mod chip;
mod clock;
mod lost;
mod state;
mod text;

pub use chip::{Irq0, Pit};
pub use clock::PitTicks;
pub use lost::{LostTicks, TickCounters, TickQueue, UnknownLostTicks};
pub use state::{PitChannelState, PitRestoreError, PitState};

#[cfg(test)]
mod tests;
