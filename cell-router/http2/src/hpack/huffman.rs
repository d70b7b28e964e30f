//! The Huffman code of HPACK. It is canonical (RFC 7541, appendix B), so lengths are all there is to know.

/// Bits of the code of each byte.
const BITS: [u8; 256] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28,
    28, 28, 28, 28, 28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5,
    5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6, 15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6,
    6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22,
    23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22,
    21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20,
    22, 22, 22, 23, 22, 22, 23, 26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19,
    21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22,
    22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
];
const SHORTEST: usize = 5;
const LONGEST: usize = 30;
/// Codes of up to so many bits are found by one lookup.
const FAST: u32 = 9;

struct Tables {
    /// The code of each byte.
    codes: [u32; 256],
    /// By the next [`FAST`] bits: the byte and the length of its code; a length of 0 when it is longer.
    fast: [(u8, u8); 1 << FAST],
    /// By length: the first code that is longer, aligned to 32 bits.
    limit: [u32; LONGEST + 1],
    /// By length: what to add to a code of this length for its place in `sorted`.
    offset: [i32; LONGEST + 1],
    /// Bytes in the order of their codes.
    sorted: [u8; 256],
}

static TABLES: Tables = tables();

const fn tables() -> Tables {
    let mut tables = Tables {
        codes: [0; 256],
        fast: [(0, 0); 1 << FAST],
        limit: [0; LONGEST + 1],
        offset: [0; LONGEST + 1],
        sorted: [0; 256],
    };
    let mut code = 0_u32;
    let mut place = 0;
    let mut length = SHORTEST;
    while length <= LONGEST {
        tables.offset[length] = place as i32 - code as i32;
        let mut byte = 0;
        while byte < 256 {
            if BITS[byte] as usize == length {
                tables.codes[byte] = code;
                tables.sorted[place] = byte as u8;
                place += 1;
                if length <= FAST as usize {
                    let spare = FAST - length as u32;
                    let mut at = (code << spare) as usize;
                    let end = ((code + 1) << spare) as usize;
                    while at < end {
                        tables.fast[at] = (byte as u8, length as u8);
                        at += 1;
                    }
                }
                code += 1;
            }
            byte += 1;
        }
        tables.limit[length] = code << (32 - length as u32);
        code <<= 1;
        length += 1;
    }
    tables
}

/// Not a Huffman string.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

/// Appends what `coded` stands for: at most 1.6 times its length.
///
/// # Errors
/// When it is no such code, or is not padded as it should be.
pub(crate) fn decode(coded: &[u8], out: &mut Vec<u8>) -> Result<(), Malformed> {
    let tables = &TABLES;
    let mut bits = 0_u64;
    let mut have = 0_u32;
    let mut rest = coded.iter();
    out.reserve(coded.len() * 8 / SHORTEST + 1);
    loop {
        while have <= 56 {
            let Some(byte) = rest.next() else { break };
            bits |= u64::from(*byte) << (56 - have);
            have += 8;
        }
        let (mut byte, mut used) = tables.fast[(bits >> (64 - FAST)) as usize];
        if used == 0 {
            let next = (bits >> 32) as u32;
            let Some(found) = (FAST as usize + 1..=LONGEST).find(|at| next < tables.limit[*at])
            else {
                // Only ones are left, which is padding when there are less than eight, or the end-of-string code.
                return padded(bits, have).then_some(()).ok_or(Malformed);
            };
            let place = (next >> (32 - found)) as i32 + tables.offset[found];
            byte = *tables.sorted.get(place as usize).ok_or(Malformed)?;
            used = found as u8;
        }
        let used = u32::from(used);
        if used > have {
            return padded(bits, have).then_some(()).ok_or(Malformed);
        }
        out.push(byte);
        bits <<= used;
        have -= used;
    }
}

/// Whether what is left is less than a byte, of ones.
fn padded(bits: u64, have: u32) -> bool {
    have < 8 && bits >> (64 - 8) == (0xff << (8 - have)) & 0xff
}

/// Only tests write Huffman strings.
#[cfg(test)]
pub(crate) mod encoder {
    use super::*;

    /// How many bytes the code of `plain` takes.
    pub(crate) fn coded_length(plain: &[u8]) -> usize {
        let bits: usize = plain
            .iter()
            .map(|byte| usize::from(BITS[usize::from(*byte)]))
            .sum();
        bits.div_ceil(8)
    }

    /// Appends the code of `plain`.
    pub(crate) fn encode(plain: &[u8], out: &mut Vec<u8>) {
        let mut bits = 0_u64;
        let mut have = 0_u32;
        for byte in plain {
            let length = u32::from(BITS[usize::from(*byte)]);
            bits = bits << length | u64::from(TABLES.codes[usize::from(*byte)]);
            have += length;
            while have >= 8 {
                have -= 8;
                out.push((bits >> have) as u8);
            }
        }
        if have > 0 {
            let spare = 8 - have;
            out.push((bits << spare) as u8 | ((1 << spare) - 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_is_ones_and_less_than_a_byte() {
        let mut out = Vec::new();
        // "0" is 00000.
        assert_eq!(decode(&[0b0000_0111], &mut out), Ok(()));
        assert_eq!(decode(&[0b0000_0110], &mut out), Err(Malformed));
        assert_eq!(decode(&[0b0000_0111, 0xff], &mut out), Err(Malformed));
        assert_eq!(decode(&[0xff, 0xff, 0xff, 0xff], &mut out), Err(Malformed));
    }
}
