//! Heads of requests as cells get them.

use std::io::Write as _;
use std::time::Duration;

use titan_http2::hpack::{Block, Encoder, token};
use titan_routing::{Epoch, Key};

use crate::deadline;
use crate::head::host;
use crate::identity::{EPOCH, KEY};

/// The host that a cell is told when the client named none.
const NO_HOST: &[u8] = b"cell";

/// The head of a request as a cell gets it: the client's, and what the router says.
#[derive(Clone, Copy)]
pub struct Outgoing<'a> {
    /// The client's, without what only the router may say.
    pub head: &'a Block,
    /// The key, when there is one.
    pub key: Option<Key>,
    /// The epoch of the table that it is routed by.
    pub epoch: Epoch,
    /// What is left of the deadline, when the cell has to be told another one than the client gave.
    pub remaining: Option<Duration>,
}

impl Outgoing<'_> {
    /// Writes it.
    pub fn write(&self, encoder: &mut Encoder, out: &mut Vec<u8>) {
        if host(self.head).is_none() {
            encoder.pair(b":authority", NO_HOST, false, out);
        }
        for field in self.head.fields() {
            if field.token != token::GRPC_TIMEOUT || self.remaining.is_none() {
                encoder.field(self.head, field, out);
            }
        }
        self.own(|name, value| encoder.pair(name.as_bytes(), value, false, out));
    }

    /// What the router says, by name and value.
    pub fn own(&self, mut field: impl FnMut(&'static str, &[u8])) {
        let mut number = |name, value: u64| {
            let mut digits = [0; 20];
            let mut rest = &mut digits[..];
            // There is room for every number.
            let _ = write!(rest, "{value}");
            let left = rest.len();
            field(name, &digits[..digits.len() - left]);
        };
        if let Some(key) = self.key {
            number(KEY, key.get());
        }
        number(EPOCH, self.epoch.0);
        if let Some(remaining) = self.remaining {
            field("grpc-timeout", deadline::text(remaining).as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::head::text;

    #[test]
    fn a_cell_gets_what_the_client_said_and_what_the_router_says() {
        let head = Block::from_iter([(":method", "POST"), ("grpc-timeout", "9S"), ("a", "b")]);
        let mut outgoing = Outgoing {
            head: &head,
            key: Some(Key::new(42).unwrap()),
            epoch: Epoch(7),
            remaining: None,
        };
        let sent = |outgoing: &Outgoing<'_>| {
            let mut out = Vec::new();
            outgoing.write(&mut Encoder::default(), &mut out);
            let mut read = Block::default();
            titan_http2::hpack::Decoder::default()
                .decode(&out, &mut read, 1 << 16)
                .unwrap();
            let fields = read.fields().iter();
            fields
                .map(|field| {
                    let part = |bytes| text(bytes).unwrap().to_owned();
                    format!("{}={}", part(read.name(field)), part(read.value(field)))
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(
            sent(&outgoing),
            [
                ":authority=cell",
                ":method=POST",
                "grpc-timeout=9S",
                "a=b",
                "x-titan-key=42",
                "x-titan-epoch=7"
            ]
        );
        outgoing.key = None;
        outgoing.remaining = Some(Duration::from_millis(3));
        assert_eq!(
            sent(&outgoing),
            [
                ":authority=cell",
                ":method=POST",
                "a=b",
                "x-titan-epoch=7",
                "grpc-timeout=3000u"
            ]
        );
    }
}
