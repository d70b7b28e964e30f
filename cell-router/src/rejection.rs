//! Why the router answers a request itself.

use std::borrow::Cow;

use http::StatusCode;

/// Why the router answers a request itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// Neither a token nor a believable key, and anonymous requests are not served.
    NoKey,
    /// `x-titan-key` from somebody who is not trusted.
    Untrusted,
    /// The token does not verify.
    BadToken,
    /// No key set to verify tokens with was ever had.
    NoKeys,
    /// `x-titan-key` or the token's subject is not a key.
    BadKey,
    /// No service of that name.
    UnknownService,
    /// No table was ever received.
    NoTable,
    /// No row covers the key.
    NoOwner,
    /// The range belongs to a cell that does not serve it yet.
    Pending,
    /// The range is fenced, and stayed so for longer than requests are held.
    Fenced,
    /// Too many requests wait for the range.
    HeldTooMany,
    /// The circuit of the cell or of the service in it is open.
    CircuitOpen,
    /// Too many requests of the key.
    KeyRate,
    /// Too many requests of the cell.
    CellRate,
    /// Too many requests of the cell are under way.
    CellBusy,
    /// The router itself has too much to do.
    Overloaded,
    /// No pod of the service could be reached.
    Unreachable,
    /// The connection to the pod broke before it answered.
    Broken,
    /// The deadline passed.
    Deadline,
    /// The client left before its request was complete.
    ClientLeft,
    /// The body is too large.
    TooLarge,
    /// The request makes no sense.
    BadRequest,
}

impl Reason {
    /// Every reason, in the order of their numbers.
    pub const ALL: [Reason; 22] = [
        Reason::NoKey,
        Reason::Untrusted,
        Reason::BadToken,
        Reason::NoKeys,
        Reason::BadKey,
        Reason::UnknownService,
        Reason::NoTable,
        Reason::NoOwner,
        Reason::Pending,
        Reason::Fenced,
        Reason::HeldTooMany,
        Reason::CircuitOpen,
        Reason::KeyRate,
        Reason::CellRate,
        Reason::CellBusy,
        Reason::Overloaded,
        Reason::Unreachable,
        Reason::Broken,
        Reason::Deadline,
        Reason::ClientLeft,
        Reason::TooLarge,
        Reason::BadRequest,
    ];

    /// The name, for labels and headers.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.row().0
    }

    /// The gRPC status.
    #[must_use]
    pub fn grpc_status(self) -> u8 {
        self.row().1
    }

    /// The HTTP status.
    #[must_use]
    pub fn http_status(self) -> StatusCode {
        self.row().2
    }

    fn row(self) -> (&'static str, u8, StatusCode) {
        const CANCELLED: u8 = 1;
        const INVALID_ARGUMENT: u8 = 3;
        const DEADLINE_EXCEEDED: u8 = 4;
        const NOT_FOUND: u8 = 5;
        const PERMISSION_DENIED: u8 = 7;
        const RESOURCE_EXHAUSTED: u8 = 8;
        const UNIMPLEMENTED: u8 = 12;
        const UNAVAILABLE: u8 = 14;
        const UNAUTHENTICATED: u8 = 16;
        match self {
            Reason::NoKey => ("no-key", UNAUTHENTICATED, StatusCode::UNAUTHORIZED),
            Reason::Untrusted => ("untrusted", PERMISSION_DENIED, StatusCode::FORBIDDEN),
            Reason::BadToken => ("bad-token", UNAUTHENTICATED, StatusCode::UNAUTHORIZED),
            Reason::NoKeys => ("no-keys", UNAVAILABLE, StatusCode::SERVICE_UNAVAILABLE),
            Reason::BadKey => ("bad-key", INVALID_ARGUMENT, StatusCode::BAD_REQUEST),
            Reason::UnknownService => ("unknown-service", UNIMPLEMENTED, StatusCode::NOT_FOUND),
            Reason::NoTable => ("no-table", UNAVAILABLE, StatusCode::SERVICE_UNAVAILABLE),
            Reason::NoOwner => ("no-owner", NOT_FOUND, StatusCode::NOT_FOUND),
            Reason::Pending => ("pending", UNAVAILABLE, StatusCode::SERVICE_UNAVAILABLE),
            Reason::Fenced => ("fenced", UNAVAILABLE, StatusCode::SERVICE_UNAVAILABLE),
            Reason::HeldTooMany => (
                "held-too-many",
                UNAVAILABLE,
                StatusCode::SERVICE_UNAVAILABLE,
            ),
            Reason::CircuitOpen => ("circuit-open", UNAVAILABLE, StatusCode::SERVICE_UNAVAILABLE),
            Reason::KeyRate => (
                "key-rate",
                RESOURCE_EXHAUSTED,
                StatusCode::TOO_MANY_REQUESTS,
            ),
            Reason::CellRate => (
                "cell-rate",
                RESOURCE_EXHAUSTED,
                StatusCode::TOO_MANY_REQUESTS,
            ),
            Reason::CellBusy => ("cell-busy", UNAVAILABLE, StatusCode::SERVICE_UNAVAILABLE),
            Reason::Overloaded => ("overloaded", UNAVAILABLE, StatusCode::SERVICE_UNAVAILABLE),
            Reason::Unreachable => ("unreachable", UNAVAILABLE, StatusCode::BAD_GATEWAY),
            Reason::Broken => ("broken", UNAVAILABLE, StatusCode::BAD_GATEWAY),
            Reason::Deadline => ("deadline", DEADLINE_EXCEEDED, StatusCode::GATEWAY_TIMEOUT),
            Reason::ClientLeft => ("client-left", CANCELLED, StatusCode::BAD_REQUEST),
            Reason::TooLarge => (
                "too-large",
                RESOURCE_EXHAUSTED,
                StatusCode::PAYLOAD_TOO_LARGE,
            ),
            Reason::BadRequest => ("bad-request", INVALID_ARGUMENT, StatusCode::BAD_REQUEST),
        }
    }
}

/// An answer of the router itself.
#[derive(Clone, Debug)]
pub struct Rejection {
    /// Why.
    pub reason: Reason,
    /// The sentence for people.
    pub message: Cow<'static, str>,
}

impl Rejection {
    /// A rejection with its sentence.
    pub fn new(reason: Reason, message: impl Into<Cow<'static, str>>) -> Self {
        Rejection {
            reason,
            message: message.into(),
        }
    }

    /// The body of a request is larger than this.
    #[must_use]
    pub fn too_large(limit: u64) -> Self {
        let message = format!("the body is larger than {limit} bytes (`limits.bodyBytes`)");
        Rejection::new(Reason::TooLarge, message)
    }
}
