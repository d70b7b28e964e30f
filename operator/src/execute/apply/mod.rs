//! Objects in the cluster: what is there, and how it is made to be what was planned.
//!
//! The rules: look before writing; create on first sight; server-side apply only on drift; never touch what is not
//! ours; delete only what was seen, by uid and resourceVersion.

mod client;
mod compared;
mod json;
mod live;
mod objects;

pub use client::{ClientError, ObjectClient, is_conflict, is_forbidden, is_not_found};
pub use compared::Compared;
pub(crate) use json::Lean;
pub use live::{LiveObject, LiveObjects, number};
pub(crate) use objects::is_as_planned;
pub use objects::{Applied, ApplyError, Scope, apply_stage, prune, remove, volumes_kept};
