//! Names that have a number: those of HPACK's static table (RFC 7541, appendix A), and more that the router looks at or
//! often sends.

/// A name by its number. 0 is any other name; up to 61, the number of the first entry of the static table with the name;
/// above, names that the static table lacks.
pub type Token = u8;

/// The numbers of names.
pub mod token {
    use super::Token;

    /// Any name without a number.
    pub const OTHER: Token = 0;
    /// `:authority`
    pub const AUTHORITY: Token = 1;
    /// `:method`
    pub const METHOD: Token = 2;
    /// `:path`
    pub const PATH: Token = 4;
    /// `:scheme`
    pub const SCHEME: Token = 6;
    /// `:status`
    pub const STATUS: Token = 8;
    /// `authorization`
    pub const AUTHORIZATION: Token = 23;
    /// `content-length`
    pub const CONTENT_LENGTH: Token = 28;
    /// `content-type`
    pub const CONTENT_TYPE: Token = 31;
    /// `host`
    pub const HOST: Token = 38;
    /// `set-cookie`
    pub const SET_COOKIE: Token = 55;
    /// `transfer-encoding`
    pub const TRANSFER_ENCODING: Token = 57;
    /// `te`
    pub const TE: Token = 62;
    /// `grpc-status`
    pub const GRPC_STATUS: Token = 63;
    /// `grpc-message`
    pub const GRPC_MESSAGE: Token = 64;
    /// `grpc-timeout`
    pub const GRPC_TIMEOUT: Token = 65;
    /// `grpc-encoding`
    pub const GRPC_ENCODING: Token = 66;
    /// `grpc-accept-encoding`
    pub const GRPC_ACCEPT_ENCODING: Token = 67;
    /// `traceparent`
    pub const TRACEPARENT: Token = 68;
    /// `tracestate`
    pub const TRACESTATE: Token = 69;
    /// `x-titan-key`
    pub const X_TITAN_KEY: Token = 70;
    /// `x-titan-epoch`
    pub const X_TITAN_EPOCH: Token = 71;
    /// `connection`
    pub const CONNECTION: Token = 72;
    /// `keep-alive`
    pub const KEEP_ALIVE: Token = 73;
    /// `proxy-connection`
    pub const PROXY_CONNECTION: Token = 74;
    /// `upgrade`
    pub const UPGRADE: Token = 75;
    /// `:protocol`
    pub const PROTOCOL: Token = 76;
    /// Any other name that begins with `x-titan-`.
    pub const X_TITAN_OTHER: Token = 77;
    pub(crate) const COUNT: usize = 78;
}

/// The static table, from 1 on.
pub(crate) const FIELDS: [(&[u8], &[u8]); 61] = [
    (b":authority", b""),
    (b":method", b"GET"),
    (b":method", b"POST"),
    (b":path", b"/"),
    (b":path", b"/index.html"),
    (b":scheme", b"http"),
    (b":scheme", b"https"),
    (b":status", b"200"),
    (b":status", b"204"),
    (b":status", b"206"),
    (b":status", b"304"),
    (b":status", b"400"),
    (b":status", b"404"),
    (b":status", b"500"),
    (b"accept-charset", b""),
    (b"accept-encoding", b"gzip, deflate"),
    (b"accept-language", b""),
    (b"accept-ranges", b""),
    (b"accept", b""),
    (b"access-control-allow-origin", b""),
    (b"age", b""),
    (b"allow", b""),
    (b"authorization", b""),
    (b"cache-control", b""),
    (b"content-disposition", b""),
    (b"content-encoding", b""),
    (b"content-language", b""),
    (b"content-length", b""),
    (b"content-location", b""),
    (b"content-range", b""),
    (b"content-type", b""),
    (b"cookie", b""),
    (b"date", b""),
    (b"etag", b""),
    (b"expect", b""),
    (b"expires", b""),
    (b"from", b""),
    (b"host", b""),
    (b"if-match", b""),
    (b"if-modified-since", b""),
    (b"if-none-match", b""),
    (b"if-range", b""),
    (b"if-unmodified-since", b""),
    (b"last-modified", b""),
    (b"link", b""),
    (b"location", b""),
    (b"max-forwards", b""),
    (b"proxy-authenticate", b""),
    (b"proxy-authorization", b""),
    (b"range", b""),
    (b"referer", b""),
    (b"refresh", b""),
    (b"retry-after", b""),
    (b"server", b""),
    (b"set-cookie", b""),
    (b"strict-transport-security", b""),
    (b"transfer-encoding", b""),
    (b"user-agent", b""),
    (b"vary", b""),
    (b"via", b""),
    (b"www-authenticate", b""),
];

/// The token of an entry of the static table.
#[must_use]
pub(crate) fn token_of_entry(index: usize) -> Token {
    const TOKENS: [Token; 62] = {
        let mut tokens = [0; 62];
        let mut at = 1;
        let mut number: Token = 1;
        while at < 62 {
            tokens[at] = match at {
                2 | 3 => 2,
                4 | 5 => 4,
                6 | 7 => 6,
                8..=14 => 8,
                _ => number,
            };
            at += 1;
            number += 1;
        }
        tokens
    };
    TOKENS.get(index).copied().unwrap_or(0)
}

/// The token of a name.
#[must_use]
pub(crate) fn token_of(name: &[u8]) -> Token {
    match name {
        b":authority" => 1,
        b":method" => 2,
        b":path" => 4,
        b":scheme" => 6,
        b":status" => 8,
        b"accept-charset" => 15,
        b"accept-encoding" => 16,
        b"accept-language" => 17,
        b"accept-ranges" => 18,
        b"accept" => 19,
        b"access-control-allow-origin" => 20,
        b"age" => 21,
        b"allow" => 22,
        b"authorization" => 23,
        b"cache-control" => 24,
        b"content-disposition" => 25,
        b"content-encoding" => 26,
        b"content-language" => 27,
        b"content-length" => 28,
        b"content-location" => 29,
        b"content-range" => 30,
        b"content-type" => 31,
        b"cookie" => 32,
        b"date" => 33,
        b"etag" => 34,
        b"expect" => 35,
        b"expires" => 36,
        b"from" => 37,
        b"host" => 38,
        b"if-match" => 39,
        b"if-modified-since" => 40,
        b"if-none-match" => 41,
        b"if-range" => 42,
        b"if-unmodified-since" => 43,
        b"last-modified" => 44,
        b"link" => 45,
        b"location" => 46,
        b"max-forwards" => 47,
        b"proxy-authenticate" => 48,
        b"proxy-authorization" => 49,
        b"range" => 50,
        b"referer" => 51,
        b"refresh" => 52,
        b"retry-after" => 53,
        b"server" => 54,
        b"set-cookie" => 55,
        b"strict-transport-security" => 56,
        b"transfer-encoding" => 57,
        b"user-agent" => 58,
        b"vary" => 59,
        b"via" => 60,
        b"www-authenticate" => 61,
        b"te" => 62,
        b"grpc-status" => 63,
        b"grpc-message" => 64,
        b"grpc-timeout" => 65,
        b"grpc-encoding" => 66,
        b"grpc-accept-encoding" => 67,
        b"traceparent" => 68,
        b"tracestate" => 69,
        b"x-titan-key" => 70,
        b"x-titan-epoch" => 71,
        b"connection" => 72,
        b"keep-alive" => 73,
        b"proxy-connection" => 74,
        b"upgrade" => 75,
        b":protocol" => 76,
        _ if name.starts_with(b"x-titan-") => token::X_TITAN_OTHER,
        _ => token::OTHER,
    }
}

/// The entry of the static table with this name and value; 0 when there is none.
#[must_use]
pub(crate) fn index_of(token: Token, value: &[u8]) -> u8 {
    match (token, value) {
        (2, b"GET") => 2,
        (2, b"POST") => 3,
        (4, b"/") => 4,
        (4, b"/index.html") => 5,
        (6, b"http") => 6,
        (6, b"https") => 7,
        (8, b"200") => 8,
        (8, b"204") => 9,
        (8, b"206") => 10,
        (8, b"304") => 11,
        (8, b"400") => 12,
        (8, b"404") => 13,
        (8, b"500") => 14,
        (16, b"gzip, deflate") => 16,
        (1 | 15 | 17..=61, b"") => token,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The names above the static table, in the order of their tokens.
    const OWN: [&[u8]; 15] = [
        b"te",
        b"grpc-status",
        b"grpc-message",
        b"grpc-timeout",
        b"grpc-encoding",
        b"grpc-accept-encoding",
        b"traceparent",
        b"tracestate",
        b"x-titan-key",
        b"x-titan-epoch",
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"upgrade",
        b":protocol",
    ];

    #[test]
    fn tokens_and_entries_agree() {
        for (at, (name, value)) in FIELDS.iter().enumerate() {
            let token = token_of(name);
            assert_eq!(FIELDS[usize::from(token) - 1].0, *name);
            assert_eq!(usize::from(index_of(token, value)), at + 1);
            assert_eq!(token_of_entry(at + 1), token);
        }
        for name in OWN {
            assert_eq!(OWN[usize::from(token_of(name)) - FIELDS.len() - 1], name);
        }
        assert_eq!(token_of(b"x-titan-anything"), token::X_TITAN_OTHER);
    }
}
