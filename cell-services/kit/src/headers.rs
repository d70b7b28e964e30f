//! The gRPC metadata that router, services and clients agree on.

/// The key of the request, a decimal number.
pub const KEY: &str = "x-titan-key";
/// The epoch of the table that the request was routed by; in a refusal, the epoch that the service knows.
pub const EPOCH: &str = "x-titan-epoch";
/// In a refusal: the cell that serves the key.
pub const MOVED_TO: &str = "x-titan-moved-to";
/// Names a mutation, so that it takes effect once.
pub const IDEMPOTENCY_KEY: &str = "idempotency-key";
/// In an answer: it was saved by an earlier request with the same idempotency key.
pub const REPLAYED: &str = "idempotency-replayed";
/// W3C trace context.
pub const TRACEPARENT: &str = "traceparent";
