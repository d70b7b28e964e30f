//! What a peer may make us do in a second for nothing.

use crate::frame::Code;

/// Streams that a peer may reset, or make us reset by what it may not do: what "rapid reset" (CVE-2023-44487) and
/// "made you reset" (CVE-2025-8671) take thousands of. Honest clients cancel all of their streams at once when a
/// deadline passes.
pub(super) const FAULTS: u32 = 1000;
/// Frames that lead to nothing: pings, settings, priorities, empty data, small updates of windows, and what comes for
/// streams that ended. What is earned (see [`Budget::earn`]) is on top.
pub(super) const IDLE: u32 = 10_000;
/// The most idle frames that may be earned and not used.
const MOST: u32 = 10 * IDLE;
/// How many idle frames are earned with a frame of ours. To each, honest peers answer with a ping that probes the
/// bandwidth, updates of two windows, and an end.
const EARNED: u32 = 4;

/// What is left of the budgets.
#[derive(Debug)]
pub(super) struct Budget {
    second: u64,
    faults: u32,
    idle: u32,
}

impl Default for Budget {
    fn default() -> Self {
        Budget {
            second: 0,
            faults: FAULTS,
            idle: IDLE,
        }
    }
}

fn take(budget: &mut u32, cost: u32) -> Result<(), Code> {
    *budget = budget.checked_sub(cost).ok_or(Code::CALM)?;
    Ok(())
}

impl Budget {
    /// Begins anew with another second. What was earned is kept.
    pub(super) fn tick(&mut self, second: u64) {
        if self.second != second {
            self.second = second;
            self.faults = FAULTS;
            self.idle = self.idle.max(IDLE);
        }
    }

    /// A stream ended by the peer, or by its fault.
    pub(super) fn fault(&mut self) -> Result<(), Code> {
        take(&mut self.faults, 1)
    }

    /// A frame that leads to nothing and takes as much work as `cost` small ones.
    pub(super) fn idle(&mut self, cost: u32) -> Result<(), Code> {
        take(&mut self.idle, cost)
    }

    /// We sent the peer something: it has reason to send idle frames.
    pub(super) fn earn(&mut self) {
        self.idle = (self.idle + EARNED).min(MOST);
    }
}
