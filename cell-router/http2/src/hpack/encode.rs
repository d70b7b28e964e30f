//! The writing side of HPACK.
//!
//! Strings are not Huffman coded: the bytes that this saves cost more at both ends than they do on the network of a
//! cluster.

use std::collections::VecDeque;

use rustc_hash::FxHashMap;

use super::{Block, ENTRY, Field, NEVER, TABLE, Token, fixed, hash, is_open, short, size, token};

/// Fields seen once, for each of which a second sight is taken for a habit.
const SEEN: usize = 64;
/// Names above the static table, whose place in the dynamic table is remembered.
const NAMED: usize = token::COUNT - fixed::FIELDS.len();

/// How a literal is written (RFC 7541, section 6.2): its first bits, and how many bits of the index follow them.
#[derive(Clone, Copy)]
struct Literal(u8, u32);

impl Literal {
    const INDEXED: Literal = Literal(0x40, 6);
    const PLAIN: Literal = Literal(0x00, 4);
    const NEVER: Literal = Literal(0x10, 4);
}

#[derive(Debug)]
struct Entry {
    both: Box<[u8]>,
    name: u32,
    token: Token,
    hash: u64,
}

impl Entry {
    fn split(&self) -> (&[u8], &[u8]) {
        self.both.split_at(size(self.name))
    }
}

/// Encodes the blocks of one direction of a connection, in their order.
///
/// The table is what the peer's decoder has in its own. A field enters it when it comes a second time, so that what
/// hardly comes again (ids, times) pushes nothing out. It takes no memory before there are entries, and at most about
/// four times [`TABLE`].
#[derive(Debug)]
pub struct Encoder {
    /// Newest first.
    entries: VecDeque<Entry>,
    /// How many were ever inserted: the place of an entry is how many came after it.
    inserted: u64,
    size: usize,
    limit: usize,
    /// The lowest limit since the last block, when the peer is to be told of a new one.
    update: Option<usize>,
    /// The number of the newest entry with a hash. Numbers are from 1 on.
    by_field: FxHashMap<u64, u64>,
    /// The number of the newest entry with a name above the static table, or 0.
    by_name: [u64; NAMED],
    seen: [u32; SEEN],
}

impl Default for Encoder {
    fn default() -> Self {
        Encoder {
            entries: VecDeque::new(),
            inserted: 0,
            size: 0,
            limit: TABLE,
            update: None,
            by_field: FxHashMap::default(),
            by_name: [0; NAMED],
            seen: [0; SEEN],
        }
    }
}

/// What is often another with each request: only its name is worth an entry. None of these is a secret.
fn is_unique(token: Token) -> bool {
    matches!(
        token,
        token::TRACEPARENT
            | token::X_TITAN_KEY
            | token::GRPC_TIMEOUT
            | token::GRPC_MESSAGE
            | token::CONTENT_LENGTH
    )
}

impl Encoder {
    /// The peer takes tables of up to `most` bytes (`SETTINGS_HEADER_TABLE_SIZE`).
    pub fn resize(&mut self, most: usize) {
        let limit = most.min(TABLE);
        if limit != self.limit {
            self.limit = limit;
            self.update = Some(self.update.map_or(limit, |lowest| lowest.min(limit)));
            self.evict(0);
        }
    }

    /// Begins a block: tells the peer of a new size of the table (RFC 7541, section 4.2).
    pub fn begin(&mut self, out: &mut Vec<u8>) {
        if let Some(lowest) = self.update.take() {
            if lowest < self.limit {
                integer(out, 0x20, 5, lowest);
            }
            integer(out, 0x20, 5, self.limit);
        }
    }

    /// Writes a field of a block that was read or made.
    #[inline]
    pub fn field(&mut self, block: &Block, field: &Field, out: &mut Vec<u8>) {
        let (name, value) = (block.name(field), block.value(field));
        if field.flags & NEVER != 0 {
            self.literal(Literal::NEVER, field.token, name, value, out);
        } else if field.whole != 0 {
            out.push(0x80 | field.whole);
        } else if is_unique(field.token) {
            self.unique(field.token, name, value, out);
        } else {
            self.habit(field.token, name, value, field.hash, out);
        }
    }

    /// Writes a field that comes from elsewhere, with a name in lower case. When it is `unique`, which is to say that
    /// its value hardly comes again or is nobody's business, its value enters no table, neither here nor further on.
    #[inline]
    pub fn pair(&mut self, name: &[u8], value: &[u8], unique: bool, out: &mut Vec<u8>) {
        let token = fixed::token_of(name);
        if is_unique(token) {
            return self.unique(token, name, value, out);
        }
        if unique {
            return self.literal(Literal::NEVER, token, name, value, out);
        }
        match fixed::index_of(token, value) {
            0 => self.habit(token, name, value, hash(token, name, value), out),
            whole => out.push(0x80 | whole),
        }
    }

    /// Writes a field that hardly comes again, with a name that has a number (not one of the tokens for all others):
    /// a literal, with the name from a table.
    #[inline]
    fn unique(&mut self, token: Token, name: &[u8], value: &[u8], out: &mut Vec<u8>) {
        debug_assert!(!is_open(token), "a token without a name");
        if self.name_index(token) != 0 {
            self.literal(Literal::PLAIN, token, name, value, out);
        } else {
            // With the first value, for the name's sake.
            self.literal(Literal::INDEXED, token, name, value, out);
            self.insert(token, name, value, hash(token, name, value));
        }
    }

    /// Writes a field that may well come again.
    #[inline]
    pub(super) fn habit(
        &mut self,
        token: Token,
        name: &[u8],
        value: &[u8],
        hash: u64,
        out: &mut Vec<u8>,
    ) {
        if let Some(number) = self.by_field.get(&hash) {
            let place = self.place(*number);
            if let Some(entry) = self.entries.get(place)
                && entry.split() == (name, value)
            {
                integer(out, 0x80, 7, fixed::FIELDS.len() + 1 + place);
                return;
            }
        }
        let [slot, ..] = hash.to_le_bytes();
        let slot = usize::from(slot) % SEEN;
        let tag = (hash >> 32) as u32;
        // An entry that would push out much of the table is not worth it.
        let fits = name.len() + value.len() + ENTRY <= self.limit / 4;
        if self.seen[slot] == tag && fits {
            self.literal(Literal::INDEXED, token, name, value, out);
            self.insert(token, name, value, hash);
        } else {
            self.seen[slot] = tag;
            self.literal(Literal::PLAIN, token, name, value, out);
        }
    }

    fn literal(
        &self,
        Literal(kind, prefix): Literal,
        token: Token,
        name: &[u8],
        value: &[u8],
        out: &mut Vec<u8>,
    ) {
        let index = self.name_index(token);
        integer(out, kind, prefix, index);
        if index == 0 {
            string(out, name);
        }
        string(out, value);
    }

    /// How many entries came after the one with this number.
    fn place(&self, number: u64) -> usize {
        usize::try_from(self.inserted - number).unwrap_or(usize::MAX)
    }

    /// Where a name is in the tables; 0 when it is not.
    fn name_index(&self, token: Token) -> usize {
        let token = usize::from(token);
        let Some(own) = token.checked_sub(fixed::FIELDS.len() + 1) else {
            return token;
        };
        match self.by_name.get(own) {
            None | Some(0) => 0,
            Some(number) => fixed::FIELDS.len() + 1 + self.place(*number),
        }
    }

    fn insert(&mut self, token: Token, name: &[u8], value: &[u8], hash: u64) {
        let room = name.len() + value.len() + ENTRY;
        self.evict(room);
        if room > self.limit {
            return;
        }
        self.inserted += 1;
        self.size += room;
        self.by_field.insert(hash, self.inserted);
        if let Some(own) = own_name(token) {
            self.by_name[own] = self.inserted;
        }
        self.entries.push_front(Entry {
            both: [name, value].concat().into(),
            name: short(name.len()),
            token,
            hash,
        });
    }

    fn evict(&mut self, room: usize) {
        while self.size + room > self.limit {
            let number = self.inserted + 1 - self.entries.len() as u64;
            let Some(oldest) = self.entries.pop_back() else {
                break;
            };
            self.size -= oldest.both.len() + ENTRY;
            if self.by_field.get(&oldest.hash) == Some(&number) {
                self.by_field.remove(&oldest.hash);
            }
            if let Some(own) = own_name(oldest.token)
                && self.by_name[own] == number
            {
                self.by_name[own] = 0;
            }
        }
    }

    /// The size of the table in bytes (RFC 7541, section 4.1).
    #[must_use]
    pub fn size(&self) -> usize {
        self.size
    }

    /// The names and values of the entries, newest first.
    pub fn entries(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.entries.iter().map(Entry::split)
    }
}

/// The place of a name among those above the static table. Names that share a token have none.
fn own_name(token: Token) -> Option<usize> {
    let own = usize::from(token).checked_sub(fixed::FIELDS.len() + 1)?;
    (!is_open(token)).then_some(own)
}

/// Writes an integer after a prefix of so many bits (RFC 7541, section 5.1).
fn integer(out: &mut Vec<u8>, kind: u8, prefix: u32, value: usize) {
    let most = (1_usize << prefix) - 1;
    let low = |value: usize| value.to_le_bytes()[0];
    if value < most {
        out.push(kind | low(value));
        return;
    }
    out.push(kind | low(most));
    let mut rest = value - most;
    while rest >= 0x80 {
        out.push(0x80 | low(rest));
        rest >>= 7;
    }
    out.push(low(rest));
}

fn string(out: &mut Vec<u8>, text: &[u8]) {
    integer(out, 0x00, 7, text.len());
    out.extend_from_slice(text);
}
