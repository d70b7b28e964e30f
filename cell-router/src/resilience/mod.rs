//! What keeps a failing cell from hurting the others, and the router from hurting itself.

pub mod budget;
pub mod health;
pub mod lateness;
pub mod rate;
