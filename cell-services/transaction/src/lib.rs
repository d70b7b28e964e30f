//! The services about what is bought: cart and order.

pub mod cart;
pub mod order;
