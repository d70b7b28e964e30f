//! HPACK (RFC 7541) for a proxy: the fields of a head are one flat list, and each keeps what was learned of it, so that
//! a field that was read before is neither validated nor searched for again on its way out.

mod decode;
mod encode;
mod fixed;
mod huffman;

pub use decode::{Broken, Decoder};
pub use encode::Encoder;
pub use fixed::{Token, token};

/// What an entry of a table, or a field of a head, is reckoned at besides its bytes (RFC 7541, section 4.1).
pub const ENTRY: usize = 32;
/// The size of the tables in bytes, unless the peer allows less; no more is ever used.
pub const TABLE: usize = 4096;

/// [`Field::flags`]: the field must enter no table, here or further on (RFC 7541, section 7.1.3).
pub const NEVER: u8 = 1;
/// [`Field::flags`]: the name or the value is not what HTTP/2 allows (RFC 9113, section 8.2.1).
pub const BAD: u8 = 2;

/// One field of a [`Block`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Where its name begins; its value follows.
    at: u32,
    name: u32,
    value: u32,
    /// The name, when it has a number.
    pub token: Token,
    /// The entry of the static table that is the whole field; 0 when none is.
    pub whole: u8,
    /// [`NEVER`] and [`BAD`].
    pub flags: u8,
    hash: u64,
}

impl Field {
    fn length(&self) -> usize {
        size(self.name) + size(self.value)
    }
}

/// The fields of a head, or of trailers, in one buffer that is used again and again.
#[derive(Clone, Debug, Default)]
pub struct Block {
    bytes: Vec<u8>,
    fields: Vec<Field>,
    /// Of all fields, also of those that were too much, as `SETTINGS_MAX_HEADER_LIST_SIZE` reckons it.
    size: usize,
    /// Whether it was larger than it may be. What was too much is not in it.
    pub over: bool,
}

impl Block {
    /// Makes it empty.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.fields.clear();
        self.size = 0;
        self.over = false;
    }

    /// The fields, in the order in which they came.
    #[must_use]
    pub fn fields(&self) -> &[Field] {
        &self.fields
    }

    /// The name of a field of this block.
    #[must_use]
    pub fn name(&self, field: &Field) -> &[u8] {
        &self.bytes[size(field.at)..][..size(field.name)]
    }

    /// The value of a field of this block.
    #[must_use]
    pub fn value(&self, field: &Field) -> &[u8] {
        &self.bytes[size(field.at) + size(field.name)..][..size(field.value)]
    }

    /// The value of the first field with this name.
    #[must_use]
    pub fn get(&self, token: Token) -> Option<&[u8]> {
        let field = self.fields.iter().find(|field| field.token == token)?;
        Some(self.value(field))
    }

    /// The value of the first field with this name, for names without a number.
    #[must_use]
    pub fn find(&self, name: &[u8]) -> Option<&[u8]> {
        let field = self.fields.iter().find(|field| self.name(field) == name)?;
        Some(self.value(field))
    }

    /// Takes out the fields that `keep` does not say yes to.
    pub fn retain(&mut self, mut keep: impl FnMut(&Self, &Field) -> bool) {
        let mut fields = std::mem::take(&mut self.fields);
        fields.retain(|field| keep(self, field));
        self.fields = fields;
    }

    /// Adds a field. Blocks are for heads: all of them together must be far below 4 GiB.
    pub fn push(&mut self, name: &[u8], value: &[u8]) {
        let at = self.bytes.len();
        self.bytes.extend_from_slice(name);
        self.bytes.extend_from_slice(value);
        let field = described(&self.bytes, at, name.len());
        self.size += name.len() + value.len() + ENTRY;
        self.fields.push(field);
    }

    /// Gives back what a large head took, so that little memory is kept from one head to the next.
    pub fn shrink(&mut self) {
        self.bytes.shrink_to(16 * 1024);
        self.fields.shrink_to(256);
    }
}

impl<N: AsRef<[u8]>, V: AsRef<[u8]>> Extend<(N, V)> for Block {
    fn extend<T: IntoIterator<Item = (N, V)>>(&mut self, fields: T) {
        for (name, value) in fields {
            self.push(name.as_ref(), value.as_ref());
        }
    }
}

impl<N: AsRef<[u8]>, V: AsRef<[u8]>> FromIterator<(N, V)> for Block {
    fn from_iter<T: IntoIterator<Item = (N, V)>>(fields: T) -> Self {
        let mut block = Block::default();
        block.extend(fields);
        block
    }
}

/// Offsets and lengths are kept in 32 bits: fields are copied a lot.
fn size(short: u32) -> usize {
    short as usize
}

/// The other way. What is bounded by the size of a head or of a table always fits.
fn short(size: usize) -> u32 {
    debug_assert!(u32::try_from(size).is_ok());
    size as u32
}

/// Describes the field whose name begins at `at` and whose value ends the bytes.
fn described(bytes: &[u8], at: usize, name: usize) -> Field {
    let (key, value) = bytes[at..].split_at(name);
    let token = fixed::token_of(key);
    let good = is_name(key, token) && is_value(value);
    Field {
        at: short(at),
        name: short(name),
        value: short(value.len()),
        token,
        whole: fixed::index_of(token, value),
        flags: if good { 0 } else { BAD },
        hash: hash(token, key, value),
    }
}

/// Whether names with this token may differ.
fn is_open(token: Token) -> bool {
    matches!(token, token::OTHER | token::X_TITAN_OTHER)
}

/// What the encoder finds fields by. Two fields with the same hash are compared before they are taken for one.
fn hash(token: Token, name: &[u8], value: &[u8]) -> u64 {
    let seed = if is_open(token) {
        xxhash_rust::xxh3::xxh3_64(name)
    } else {
        u64::from(token)
    };
    xxhash_rust::xxh3::xxh3_64_with_seed(value, seed)
}

/// Lower case, as HTTP/2 wants it; a colon only in front of the names that are known.
fn is_name(name: &[u8], token: Token) -> bool {
    const ALLOWED: [bool; 256] = {
        let mut allowed = [false; 256];
        let letters = b"abcdefghijklmnopqrstuvwxyz0123456789!#$%&'*+-.^_`|~";
        let mut at = 0;
        while at < letters.len() {
            allowed[letters[at] as usize] = true;
            at += 1;
        }
        allowed
    };
    !is_open(token) || !name.is_empty() && name.iter().all(|byte| ALLOWED[usize::from(*byte)])
}

fn is_value(value: &[u8]) -> bool {
    value
        .iter()
        .all(|byte| matches!(byte, b' '..=b'~' | b'\t' | 0x80..))
}

#[cfg(test)]
mod tests;
