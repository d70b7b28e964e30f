//! The reading side of HPACK.

use std::collections::VecDeque;

use super::{Block, ENTRY, Field, NEVER, TABLE, described, fixed, huffman, short, size};

/// How many times as large as it may be a head is read on, for the sake of the table and of an answer that says so.
/// What is larger still is an attack: few bytes can name an entry of the table many times.
const OVER: usize = 4;

/// The block cannot be decoded, and neither can any that follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken;

/// Decodes the blocks of one direction of a connection, in their order.
///
/// The table is what the peer's encoder has in its own. Its entries are in one buffer, oldest first; when the end of
/// the buffer is reached, those that are alive move to its start. It takes no memory before there are entries, and at
/// most about four times [`TABLE`].
#[derive(Debug)]
pub struct Decoder {
    bytes: Vec<u8>,
    /// Newest first. `at` counts from the start of `bytes`.
    entries: VecDeque<Field>,
    size: usize,
    /// What the peer chose, up to what it may.
    limit: usize,
    most: usize,
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new(TABLE)
    }
}

impl Decoder {
    /// A decoder for a peer that may use a table of `most` bytes.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Decoder {
            bytes: Vec::new(),
            entries: VecDeque::new(),
            size: 0,
            limit: most,
            most,
        }
    }

    /// Decodes a whole block. Fields beyond `most` bytes (as `SETTINGS_MAX_HEADER_LIST_SIZE` reckons them) are read for
    /// the sake of the table and not kept; then the block is [over](Block::over).
    ///
    /// # Errors
    /// When the connection must end: the block is not what RFC 7541 allows, or is many times as large as it may be.
    pub fn decode(
        &mut self,
        mut from: &[u8],
        block: &mut Block,
        most: usize,
    ) -> Result<(), Broken> {
        block.clear();
        let mut updates = 0;
        while let Some(first) = from.first().copied() {
            if first & 0x80 != 0 {
                let index = integer(&mut from, 7)?;
                self.indexed(index, block, most)?;
            } else if first & 0xc0 == 0x40 {
                let field = self.literal(&mut from, 6, block)?;
                self.insert(&block.bytes, field);
                keep(block, field, most)?;
            } else if first & 0xe0 == 0x20 {
                let limit = integer(&mut from, 5)?;
                updates += 1;
                // They come before any field, and only the lowest and the last matter (RFC 7541, section 4.2).
                if limit > self.most || !block.fields.is_empty() || block.over || updates > 2 {
                    return Err(Broken);
                }
                self.limit = limit;
                self.evict(0);
            } else {
                let mut field = self.literal(&mut from, 4, block)?;
                if first & 0x10 != 0 {
                    field.flags |= NEVER;
                }
                keep(block, field, most)?;
            }
        }
        Ok(())
    }

    fn indexed(&self, index: usize, block: &mut Block, most: usize) -> Result<(), Broken> {
        let at = short(block.bytes.len());
        let entry = match index.checked_sub(1).and_then(|at| fixed::FIELDS.get(at)) {
            Some((name, value)) => {
                if !block.over {
                    block.bytes.extend_from_slice(name);
                    block.bytes.extend_from_slice(value);
                }
                Field {
                    at,
                    name: short(name.len()),
                    value: short(value.len()),
                    token: fixed::token_of_entry(index),
                    whole: u8::try_from(index).unwrap_or(0),
                    flags: 0,
                    hash: 0,
                }
            }
            None => {
                let entry = self.entry(index)?;
                if !block.over {
                    block.bytes.extend_from_slice(self.both(entry));
                }
                Field { at, ..*entry }
            }
        };
        keep(block, entry, most)
    }

    fn entry(&self, index: usize) -> Result<&Field, Broken> {
        let at = index.checked_sub(fixed::FIELDS.len() + 1).ok_or(Broken)?;
        self.entries.get(at).ok_or(Broken)
    }

    fn both(&self, entry: &Field) -> &[u8] {
        &self.bytes[size(entry.at)..][..entry.length()]
    }

    /// Reads a literal into the block's bytes, not into its fields.
    fn literal(&self, from: &mut &[u8], prefix: u32, block: &mut Block) -> Result<Field, Broken> {
        let at = block.bytes.len();
        match integer(from, prefix)? {
            0 => string(from, &mut block.bytes)?,
            index => match fixed::FIELDS.get(index - 1) {
                Some((name, _)) => block.bytes.extend_from_slice(name),
                None => {
                    let entry = self.entry(index)?;
                    let name = &self.bytes[size(entry.at)..][..size(entry.name)];
                    block.bytes.extend_from_slice(name);
                }
            },
        }
        let name = block.bytes.len() - at;
        string(from, &mut block.bytes)?;
        Ok(described(&block.bytes, at, name))
    }

    fn insert(&mut self, bytes: &[u8], field: Field) {
        let both = &bytes[size(field.at)..][..field.length()];
        let room = both.len() + ENTRY;
        self.evict(room);
        if room > self.limit {
            return;
        }
        if self.bytes.len() + both.len() > self.bytes.capacity() {
            self.make_room(both.len());
        }
        let at = short(self.bytes.len());
        self.bytes.extend_from_slice(both);
        self.entries.push_front(Field { at, ..field });
        self.size += room;
    }

    /// Removes the oldest until there is room.
    fn evict(&mut self, room: usize) {
        while self.size + room > self.limit {
            let Some(oldest) = self.entries.pop_back() else {
                break;
            };
            self.size -= oldest.length() + ENTRY;
        }
    }

    /// Moves what is alive to the start.
    fn make_room(&mut self, room: usize) {
        let start = self
            .entries
            .back()
            .map_or(self.bytes.len(), |oldest| size(oldest.at));
        self.bytes.drain(..start);
        for entry in &mut self.entries {
            entry.at -= short(start);
        }
        // Twice what is alive, so that moving is rare.
        self.bytes.reserve((self.bytes.len() + room).max(256));
    }

    /// The size of the table in bytes (RFC 7541, section 4.1).
    #[must_use]
    pub fn size(&self) -> usize {
        self.size
    }

    /// The names and values of the entries, newest first.
    pub fn entries(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.entries
            .iter()
            .map(|entry| self.both(entry).split_at(size(entry.name)))
    }
}

/// Takes a field whose bytes end the block's, or only reckons it when the block is too large.
fn keep(block: &mut Block, field: Field, most: usize) -> Result<(), Broken> {
    block.size += field.length() + ENTRY;
    if block.size <= most {
        block.fields.push(field);
        return Ok(());
    }
    block.over = true;
    block.bytes.truncate(size(field.at));
    if block.size > most.saturating_mul(OVER) {
        return Err(Broken);
    }
    Ok(())
}

/// Reads an integer after a prefix of so many bits (RFC 7541, section 5.1): below 2^28, which is more than any length or
/// index that makes sense.
fn integer(from: &mut &[u8], prefix: u32) -> Result<usize, Broken> {
    let (first, mut rest) = from.split_first().ok_or(Broken)?;
    let most = (1_usize << prefix) - 1;
    let mut value = usize::from(*first) & most;
    if value == most {
        let mut shift = 0;
        loop {
            let (next, after) = rest.split_first().ok_or(Broken)?;
            rest = after;
            value += usize::from(next & 0x7f) << shift;
            if next & 0x80 == 0 {
                break;
            }
            shift += 7;
            if shift > 21 {
                return Err(Broken);
            }
        }
    }
    *from = rest;
    Ok(value)
}

/// Appends a string (RFC 7541, section 5.2).
fn string(from: &mut &[u8], out: &mut Vec<u8>) -> Result<(), Broken> {
    let coded = from.first().ok_or(Broken)? & 0x80 != 0;
    let length = integer(from, 7)?;
    let (text, rest) = from.split_at_checked(length).ok_or(Broken)?;
    *from = rest;
    if coded {
        return huffman::decode(text, out).map_err(|_| Broken);
    }
    out.extend_from_slice(text);
    Ok(())
}
