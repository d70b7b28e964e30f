//! The services about what is bought: order.

pub mod order;
