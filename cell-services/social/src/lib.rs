//! The services about people: user.

pub mod user;
