//! The services about money and goods: cart and order.
