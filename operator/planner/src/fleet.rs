//! All cells of a fleet.
