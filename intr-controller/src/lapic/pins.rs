//! The pins LINT0 and LINT1, and ExtINT messages.

/// Levels of the pins: asserted or not, whatever the polarity that the guest wrote.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Pins {
    lint0: bool,
    lint1: bool,
    /// An ExtINT came as a message, and is pending whatever LINT0 is.
    ext_int_message: bool,
}

impl Pins {
    /// From a saved state.
    pub(super) const fn from_parts([lint0, lint1]: [bool; 2], ext_int_message: bool) -> Self {
        Self {
            lint0,
            lint1,
            ext_int_message,
        }
    }

    /// The levels of both.
    pub(super) const fn lint(self) -> [bool; 2] {
        [self.lint0, self.lint1]
    }

    pub(super) const fn lint0(self) -> bool {
        self.lint0
    }

    pub(super) const fn ext_int_message(self) -> bool {
        self.ext_int_message
    }

    /// Drives LINT0. Returns `true` if it rose.
    pub(super) const fn set_lint0(&mut self, asserted: bool) -> bool {
        let rose = asserted && !self.lint0;
        self.lint0 = asserted;
        rose
    }

    /// Drives LINT1. Returns `true` if it rose.
    pub(super) const fn set_lint1(&mut self, asserted: bool) -> bool {
        let rose = asserted && !self.lint1;
        self.lint1 = asserted;
        rose
    }

    /// An ExtINT arrives as a message.
    pub(super) const fn ext_int(&mut self) {
        self.ext_int_message = true;
    }

    /// INIT: the levels of the pins are their drivers'.
    pub(super) const fn init(&mut self) {
        self.ext_int_message = false;
    }

    /// An ExtINT was injected: its acknowledge answered the request of the pin, whose driver reports
    /// the level again.
    pub(super) const fn acknowledged(&mut self) {
        self.lint0 = false;
        self.ext_int_message = false;
    }
}
