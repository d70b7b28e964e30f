//! Planning, and nothing else: functions from resources and observations to desired state.
//!
//! No kube client, no tokio, no clock and no randomness: time and passwords are handed in. What this crate decides
//! is therefore the same on every replica and in every test, and a plan leaves no choice to the code that executes it.
//!
//! - [`cell`]: one Cell: [`cell::validate`] its spec against its profile and fleet, then [`cell::build`] every object.
//! - [`assignment`]: the next routing table of a fleet, and what the data homes do before and after it.
//! - [`fleet`]: all cells of a fleet: which cells the template makes, its status, and the table as a resource.
//! - [`status`]: what a Cell's status says of the steps that were taken.

pub mod assignment;
pub mod availability;
pub mod backoff;
pub mod cell;
pub mod circuit;
pub mod condition;
pub mod diagnosis;
pub mod fleet;
pub mod merge_patch;
pub mod object;
pub mod status;

/// What is known of a thing. `Unknown` is never treated as `Absent`: one is a reason to wait, the other to act.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Observed<T> {
    /// It was seen.
    Known(T),
    /// It could not be looked at.
    Unknown,
    /// It was looked for and is not there.
    Absent,
}
