//! Frames (RFC 9113, sections 4, 6 and 7).

use std::fmt;

/// The size of a frame's header in bytes.
pub const HEADER_BYTES: usize = 9;
/// The largest payload that is taken and that is sent, in bytes: the default of `SETTINGS_MAX_FRAME_SIZE`, which is also
/// the least that a peer may set.
pub const MAX_PAYLOAD: usize = 16_384;
/// What a client sends first (RFC 9113, section 3.4).
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The size in bytes of every window before another one is agreed (RFC 9113, section 6.9.2).
pub const DEFAULT_WINDOW: u32 = 65_535;
/// What no window and no stream id may be above.
pub const MAX_31_BITS: u32 = (1 << 31) - 1;

/// Types of frames (RFC 9113, section 6).
pub mod kind {
    /// A part of a body.
    pub const DATA: u8 = 0;
    /// The beginning of a head or of trailers.
    pub const HEADERS: u8 = 1;
    /// Deprecated.
    pub const PRIORITY: u8 = 2;
    /// The end of a stream, before its time.
    pub const RST_STREAM: u8 = 3;
    /// What the sender wants and can do.
    pub const SETTINGS: u8 = 4;
    /// An announcement of a push.
    pub const PUSH_PROMISE: u8 = 5;
    /// A question whether somebody is there, or its answer.
    pub const PING: u8 = 6;
    /// No more streams.
    pub const GOAWAY: u8 = 7;
    /// More may be sent.
    pub const WINDOW_UPDATE: u8 = 8;
    /// The rest of a head or of trailers.
    pub const CONTINUATION: u8 = 9;
}

/// Flags of frames (RFC 9113, section 6).
pub mod flag {
    /// Of DATA and HEADERS: the sender's side of the stream ends.
    pub const END_STREAM: u8 = 1;
    /// Of SETTINGS and PING: the answer to one.
    pub const ACK: u8 = 1;
    /// Of HEADERS and CONTINUATION: the block is complete.
    pub const END_HEADERS: u8 = 4;
    /// Of DATA and HEADERS: there is padding.
    pub const PADDED: u8 = 8;
    /// Of HEADERS: there is a priority.
    pub const PRIORITY: u8 = 32;
}

/// Parameters of SETTINGS (RFC 9113, section 6.5.2).
pub mod setting {
    /// The size of the HPACK table that the sender decodes with, in bytes.
    pub const HEADER_TABLE_SIZE: u16 = 1;
    /// Whether the sender takes pushes.
    pub const ENABLE_PUSH: u16 = 2;
    /// How many streams the receiver may have under way.
    pub const MAX_CONCURRENT_STREAMS: u16 = 3;
    /// The window that each stream begins with, in bytes.
    pub const INITIAL_WINDOW_SIZE: u16 = 4;
    /// The largest payload that the sender takes, in bytes.
    pub const MAX_FRAME_SIZE: u16 = 5;
    /// The largest head that the sender takes, in bytes as HPACK reckons them. Advice only.
    pub const MAX_HEADER_LIST_SIZE: u16 = 6;
}

/// Why a stream or a connection ends (RFC 9113, section 7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Code(pub u32);

impl Code {
    /// Nothing is wrong.
    pub const NO_ERROR: Code = Code(0);
    /// The peer broke the rules.
    pub const PROTOCOL: Code = Code(1);
    /// It is the sender's own fault.
    pub const INTERNAL: Code = Code(2);
    /// The peer sent more than its window, or opened ours too wide.
    pub const FLOW_CONTROL: Code = Code(3);
    /// Settings were not acknowledged in time.
    pub const SETTINGS_TIMEOUT: Code = Code(4);
    /// A frame came after the end of its stream.
    pub const STREAM_CLOSED: Code = Code(5);
    /// A frame has a size that it cannot have.
    pub const FRAME_SIZE: Code = Code(6);
    /// Nothing was done with the request: it may be sent again.
    pub const REFUSED: Code = Code(7);
    /// Nobody wants the stream any more.
    pub const CANCEL: Code = Code(8);
    /// A block cannot be decoded.
    pub const COMPRESSION: Code = Code(9);
    /// A tunnel broke.
    pub const CONNECT: Code = Code(10);
    /// The peer causes too much work.
    pub const CALM: Code = Code(11);
    /// The transport is not secure enough.
    pub const INADEQUATE_SECURITY: Code = Code(12);
    /// The request must be sent with HTTP/1.1.
    pub const HTTP_1_1_REQUIRED: Code = Code(13);
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match *self {
            Code::NO_ERROR => "NO_ERROR",
            Code::PROTOCOL => "PROTOCOL_ERROR",
            Code::INTERNAL => "INTERNAL_ERROR",
            Code::FLOW_CONTROL => "FLOW_CONTROL_ERROR",
            Code::SETTINGS_TIMEOUT => "SETTINGS_TIMEOUT",
            Code::STREAM_CLOSED => "STREAM_CLOSED",
            Code::FRAME_SIZE => "FRAME_SIZE_ERROR",
            Code::REFUSED => "REFUSED_STREAM",
            Code::CANCEL => "CANCEL",
            Code::COMPRESSION => "COMPRESSION_ERROR",
            Code::CONNECT => "CONNECT_ERROR",
            Code::CALM => "ENHANCE_YOUR_CALM",
            Code::INADEQUATE_SECURITY => "INADEQUATE_SECURITY",
            Code::HTTP_1_1_REQUIRED => "HTTP_1_1_REQUIRED",
            Code(other) => return write!(f, "error code {other:#x}"),
        })
    }
}

/// What goes before the payload (RFC 9113, section 4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Of the payload, in bytes.
    pub length: usize,
    /// One of [`kind`], or anything else.
    pub kind: u8,
    /// Of [`flag`].
    pub flags: u8,
    /// The id of the stream; 0 for the connection.
    pub stream: u32,
}

impl Header {
    /// Reads the header in front of `bytes`, when there are enough of them.
    #[inline]
    #[must_use]
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let [a, b, c, kind, flags, id @ ..] = *bytes.first_chunk::<HEADER_BYTES>()?;
        Some(Header {
            length: usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c),
            kind,
            flags,
            // The first bit is reserved.
            stream: u32::from_be_bytes(id) & MAX_31_BITS,
        })
    }

    /// As it is sent.
    #[inline]
    #[must_use]
    pub fn bytes(self) -> [u8; HEADER_BYTES] {
        let length = self.length.to_be_bytes();
        let [.., a, b, c] = length;
        let [d, e, f, g] = self.stream.to_be_bytes();
        [a, b, c, self.kind, self.flags, d, e, f, g]
    }

    /// Whether a flag is set.
    #[inline]
    #[must_use]
    pub fn has(self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// Appends a frame.
#[inline]
pub fn write(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let length = payload.len();
    debug_assert!(length <= MAX_PAYLOAD);
    let header = Header {
        length,
        kind,
        flags,
        stream,
    };
    out.reserve(HEADER_BYTES + length);
    out.extend_from_slice(&header.bytes());
    out.extend_from_slice(payload);
}

/// The first four bytes as a number; 0 when there are fewer.
#[inline]
#[must_use]
pub fn number(bytes: &[u8]) -> u32 {
    bytes
        .first_chunk()
        .map_or(0, |four| u32::from_be_bytes(*four))
}

/// The payload of a frame without its padding (RFC 9113, section 6.1).
pub(crate) fn unpadded(header: Header, payload: &[u8]) -> Result<&[u8], Code> {
    if !header.has(flag::PADDED) {
        return Ok(payload);
    }
    let (padding, rest) = payload.split_first().ok_or(Code::FRAME_SIZE)?;
    let length = rest.len().checked_sub(usize::from(*padding));
    length.map(|length| &rest[..length]).ok_or(Code::PROTOCOL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_read_as_it_was_written() {
        let header = Header {
            length: 0x0001_0203,
            kind: kind::DATA,
            flags: flag::END_STREAM,
            stream: 0x7fff_fff1,
        };
        assert_eq!(Header::read(&header.bytes()), Some(header));
        assert_eq!(Header::read(&header.bytes()[..8]), None);
        let mut reserved = header.bytes();
        reserved[5] |= 0x80;
        assert_eq!(Header::read(&reserved), Some(header), "the bit is ignored");
    }

    #[test]
    fn padding_that_is_longer_than_its_frame_is_a_lie() {
        let header = |length| Header {
            length,
            kind: kind::DATA,
            flags: flag::PADDED,
            stream: 1,
        };
        assert_eq!(unpadded(header(4), &[2, 7, 0, 0]), Ok(&[7][..]));
        assert_eq!(unpadded(header(3), &[2, 0, 0]), Ok(&[][..]));
        assert_eq!(unpadded(header(3), &[3, 0, 0]), Err(Code::PROTOCOL));
        assert_eq!(unpadded(header(0), &[]), Err(Code::FRAME_SIZE));
    }
}
