//! The cell of a request without a key: always the same for a client, and evenly spread.

use std::net::IpAddr;

/// The hash that chooses the cell of an anonymous request.
pub(super) fn hash_ip(ip: IpAddr) -> u64 {
    match ip {
        IpAddr::V4(ip) => xxhash_rust::xxh3::xxh3_64(&ip.octets()),
        IpAddr::V6(ip) => xxhash_rust::xxh3::xxh3_64(&ip.octets()),
    }
}

/// One of `buckets`, so that one more bucket moves as few keys as possible (Lamping and Veach).
pub(super) fn jump_hash(mut key: u64, buckets: usize) -> Option<usize> {
    let buckets = u64::try_from(buckets).ok().filter(|count| *count > 0)?;
    let mut bucket = 0;
    let mut next = 0_u64;
    while next < buckets {
        bucket = next;
        key = key.wrapping_mul(2_862_933_555_777_941_757).wrapping_add(1);
        next = u64::try_from((u128::from(bucket + 1) << 31) / u128::from((key >> 33) + 1))
            .unwrap_or(u64::MAX);
    }
    usize::try_from(bucket).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jump_hash_is_even_and_stable() {
        let mut counts = [0_usize; 10];
        let mut moved = 0;
        for key in 0..10_000_u64 {
            let hash = xxhash_rust::xxh3::xxh3_64(&key.to_le_bytes());
            let ten = jump_hash(hash, 10).unwrap();
            counts[ten] += 1;
            let eleven = jump_hash(hash, 11).unwrap();
            assert!(
                eleven == ten || eleven == 10,
                "keys move to the new bucket alone"
            );
            moved += usize::from(eleven != ten);
        }
        assert!(
            counts.iter().all(|count| (850..1150).contains(count)),
            "{counts:?}"
        );
        assert!((700..1100).contains(&moved), "{moved}");
        assert_eq!(jump_hash(7, 0), None);
    }
}
