//! Which heads and trailers are well-formed (RFC 9113, section 8).
//!
//! A value that begins or ends with a space is let through, against section 8.2.1: clients send such values as gRPC
//! metadata, and nothing is gained by refusing them.

use crate::hpack::{BAD, Block, Field, token};

/// What a connection needs to know of the head of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) length: Option<u64>,
}

/// The body that a request announces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) length: Option<u64>,
}

/// A head or trailers that break the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

fn is_pseudo(field: &Field) -> bool {
    matches!(
        field.token,
        token::AUTHORITY
            | token::METHOD
            | token::PATH
            | token::SCHEME
            | token::STATUS
            | token::PROTOCOL
    )
}

/// Fields that speak of one connection have no place in HTTP/2 (section 8.2.2).
fn is_allowed(block: &Block, field: &Field) -> bool {
    match field.token {
        token::CONNECTION
        | token::KEEP_ALIVE
        | token::PROXY_CONNECTION
        | token::UPGRADE
        | token::TRANSFER_ENCODING => false,
        // In lower case, as everybody writes it: servers on h2 refuse any other.
        token::TE => block.value(field) == b"trailers",
        _ => field.flags & BAD == 0,
    }
}

/// Whether a pseudo field can stand in a request line: without spaces, which would make another request of it where it
/// is passed on as HTTP/1.1.
fn is_visible(text: &[u8]) -> bool {
    text.iter().all(|byte| matches!(byte, 0x21..=0x7e | 0x80..))
}

/// A decimal number of up to 19 digits.
#[must_use]
pub fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || text.len() > 19 {
        return None;
    }
    text.iter().try_fold(0_u64, |value, digit| {
        let digit = digit.wrapping_sub(b'0');
        (digit < 10).then(|| value * 10 + u64::from(digit))
    })
}

/// What `content-length` says, said once or more often alike.
fn announced(known: Option<u64>, text: &[u8]) -> Result<Option<u64>, Malformed> {
    let length = decimal(text).ok_or(Malformed)?;
    match known {
        Some(known) if known != length => Err(Malformed),
        _ => Ok(Some(length)),
    }
}

/// Looks at the head of a request (section 8.3.1). CONNECT has an authority and nothing else (section 8.5); its
/// extension with `:protocol` (RFC 8441) was not offered.
pub(crate) fn request(block: &Block) -> Result<Request, Malformed> {
    const METHOD: u8 = 1;
    const SCHEME: u8 = 2;
    const PATH: u8 = 4;
    const AUTHORITY: u8 = 8;
    let mut seen = 0_u8;
    let mut connect = false;
    let mut regular = false;
    let mut length = None;
    for field in block.fields() {
        let value = block.value(field);
        let bit = match field.token {
            token::METHOD => METHOD,
            token::SCHEME => SCHEME,
            token::PATH => PATH,
            token::AUTHORITY => AUTHORITY,
            _ if is_pseudo(field) => return Err(Malformed),
            _ => 0,
        };
        if bit != 0 {
            if regular || seen & bit != 0 || !is_visible(value) {
                return Err(Malformed);
            }
            let good = match bit {
                PATH => value.starts_with(b"/") || value == b"*",
                AUTHORITY => true,
                _ => !value.is_empty(),
            };
            if !good {
                return Err(Malformed);
            }
            connect |= bit == METHOD && value == b"CONNECT";
            seen |= bit;
            continue;
        }
        regular = true;
        if !is_allowed(block, field) {
            return Err(Malformed);
        }
        if field.token == token::CONTENT_LENGTH {
            length = announced(length, value)?;
        }
    }
    let complete = if connect {
        seen == METHOD | AUTHORITY
    } else {
        seen | AUTHORITY == METHOD | SCHEME | PATH | AUTHORITY
    };
    complete.then_some(Request { length }).ok_or(Malformed)
}

/// Looks at the head of an answer (section 8.3.2).
pub(crate) fn answer(block: &Block) -> Result<Answer, Malformed> {
    let (first, rest) = block.fields().split_first().ok_or(Malformed)?;
    let text = block.value(first);
    if first.token != token::STATUS || text.len() != 3 {
        return Err(Malformed);
    }
    let status = decimal(text).and_then(|status| u16::try_from(status).ok());
    // HTTP/2 has no 101 (section 8.6).
    let status = status
        .filter(|status| *status >= 100 && *status != 101)
        .ok_or(Malformed)?;
    let mut length = None;
    for field in rest {
        if is_pseudo(field) || !is_allowed(block, field) {
            return Err(Malformed);
        }
        if field.token == token::CONTENT_LENGTH {
            length = announced(length, block.value(field))?;
        }
    }
    Ok(Answer { status, length })
}

/// Whether these are good trailers (section 8.1).
pub(crate) fn are_trailers(block: &Block) -> bool {
    block
        .fields()
        .iter()
        .all(|field| !is_pseudo(field) && is_allowed(block, field))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(text: &str) -> Block {
        let lines = text.split(", ").filter(|line| !line.is_empty());
        lines.map(|line| line.split_once('=').unwrap()).collect()
    }

    #[test]
    fn requests_are_well_formed_or_not() {
        let good = [
            (":method=GET, :scheme=http, :path=/", None),
            (
                ":path=/a?b, :method=PUT, :authority=a:1, :scheme=https",
                None,
            ),
            (":method=OPTIONS, :scheme=http, :path=*", None),
            (":method=CONNECT, :authority=a:443", None),
            (":method=GET, :scheme=http, :path=/, te=trailers", None),
            (
                ":method=POST, :scheme=http, :path=/, content-length=5, content-length=5",
                Some(5),
            ),
        ];
        for (text, length) in good {
            assert_eq!(request(&block(text)), Ok(Request { length }), "{text}");
        }
        let bad = [
            "",
            ":method=GET, :scheme=http",
            ":method=GET, :path=/",
            ":scheme=http, :path=/",
            ":method=GET, :scheme=http, :path=",
            ":method=GET, :scheme=http, :path=a",
            ":method=, :scheme=http, :path=/",
            ":method=GET, :method=GET, :scheme=http, :path=/",
            ":method=GET, :scheme=http, :path=/, :path=/",
            ":method=GET, :scheme=http, x=1, :path=/",
            ":method=GET, :scheme=http, :path=/, :status=200",
            ":method=GET, :scheme=http, :path=/, :odd=1",
            ":method=GET, :scheme=http, :path=/ HTTP/1.1",
            ":method=GET, :scheme=http, :path=/, :authority=a b",
            ":method=GET /x, :scheme=http, :path=/",
            ":method=GET, :scheme=http, :path=/, connection=close",
            ":method=GET, :scheme=http, :path=/, transfer-encoding=chunked",
            ":method=GET, :scheme=http, :path=/, te=gzip",
            ":method=GET, :scheme=http, :path=/, te=Trailers",
            ":method=GET, :scheme=http, :path=/, Upper=1",
            ":method=GET, :scheme=http, :path=/, =1",
            ":method=GET, :scheme=http, :path=/, a=1\r\nb: 2",
            ":method=GET, :scheme=http, :path=/, content-length=5, content-length=6",
            ":method=GET, :scheme=http, :path=/, content-length=+5",
            ":method=GET, :scheme=http, :path=/, content-length=-1",
            ":method=GET, :scheme=http, :path=/, content-length=",
            ":method=GET, :scheme=http, :path=/, content-length=99999999999999999999",
            ":method=CONNECT",
            ":method=CONNECT, :authority=a, :path=/",
            ":method=CONNECT, :authority=a, :scheme=http",
            ":method=CONNECT, :authority=a, :scheme=http, :path=/, :protocol=websocket",
        ];
        for text in bad {
            assert_eq!(request(&block(text)), Err(Malformed), "{text}");
        }
    }

    #[test]
    fn answers_are_well_formed_or_not() {
        let (status, length) = (200, Some(5));
        let good = block(":status=200, content-length=5, content-length=5");
        assert_eq!(answer(&good), Ok(Answer { status, length }));
        let bad = [
            "",
            "x=1",
            "x=1, :status=200",
            ":status=20",
            ":status=2000",
            ":status=2x0",
            ":status=099",
            ":status=101",
            ":status=200, :status=200",
            ":status=200, :path=/",
            ":status=200, connection=close",
            ":status=200, content-length=5, content-length=6",
        ];
        for text in bad {
            assert_eq!(answer(&block(text)), Err(Malformed), "{text}");
        }
    }

    #[test]
    fn trailers_have_no_pseudo_fields() {
        assert!(are_trailers(&block("grpc-status=0")));
        for text in [":status=200", ":path=/", "connection=close", "Upper=1"] {
            assert!(!are_trailers(&block(text)), "{text}");
        }
    }

    #[test]
    fn numbers_are_decimal() {
        assert_eq!(decimal(b"0019"), Some(19));
        assert_eq!(
            decimal(b"9999999999999999999"),
            Some(9_999_999_999_999_999_999)
        );
        for text in ["", "1x", " 1", "+1", "99999999999999999999"] {
            assert_eq!(decimal(text.as_bytes()), None, "{text}");
        }
    }
}
