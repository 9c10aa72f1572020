//! A bound on work that does not depend on the clock: the same selectors get the same answers on
//! every machine.

/// The question was not answered within its bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct GaveUp;

/// Units of work left; one is some ten nanoseconds, such as one step of one automaton.
#[derive(Debug)]
pub(super) struct Work(u64);

impl Work {
    pub(super) fn new(units: u64) -> Self {
        Self(units)
    }

    pub(super) fn spend(&mut self, units: usize) -> Result<(), GaveUp> {
        let left = self.0.checked_sub(units as u64);
        self.0 = left.unwrap_or(0);
        left.map(drop).ok_or(GaveUp)
    }

    /// Takes up to `units` out, to be spent elsewhere.
    pub(super) fn take(&mut self, units: u64) -> Self {
        let taken = units.min(self.0);
        self.0 -= taken;
        Self(taken)
    }

    /// Adds what is left of `other`.
    pub(super) fn put_back(&mut self, other: &Self) {
        self.0 = self.0.saturating_add(other.0);
    }
}
