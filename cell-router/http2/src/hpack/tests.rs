use proptest::prelude::*;

use super::*;

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len() / 2)
        .map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap())
        .collect()
}

fn read(block: &Block) -> Vec<(String, String)> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    block
        .fields()
        .iter()
        .map(|field| (text(block.name(field)), text(block.value(field))))
        .collect()
}

/// A block, what it stands for, and the size of the table then.
type Step<'a> = (&'a str, &'a [(&'a str, &'a str)], usize);

/// Decodes blocks one after the other; after each, what was read and the table must be these.
fn check(table: usize, steps: &[Step]) {
    let mut decoder = Decoder::new(table);
    let mut block = Block::default();
    for (hex, fields, size) in steps {
        decoder.decode(&bytes(hex), &mut block, 1 << 16).unwrap();
        let wanted: Vec<_> = fields
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        assert_eq!(read(&block), wanted);
        assert_eq!(decoder.size(), *size, "after {hex}");
    }
}

#[test]
fn appendix_c2_representations() {
    check(
        4096,
        &[(
            "400a637573746f6d2d6b65790d637573746f6d2d686561646572",
            &[("custom-key", "custom-header")],
            55,
        )],
    );
    check(
        4096,
        &[(
            "040c2f73616d706c652f70617468",
            &[(":path", "/sample/path")],
            0,
        )],
    );
    check(
        4096,
        &[(
            "100870617373776f726406736563726574",
            &[("password", "secret")],
            0,
        )],
    );
    check(4096, &[("82", &[(":method", "GET")], 0)]);
}

const REQUESTS: [&[(&str, &str)]; 3] = [
    &[
        (":method", "GET"),
        (":scheme", "http"),
        (":path", "/"),
        (":authority", "www.example.com"),
    ],
    &[
        (":method", "GET"),
        (":scheme", "http"),
        (":path", "/"),
        (":authority", "www.example.com"),
        ("cache-control", "no-cache"),
    ],
    &[
        (":method", "GET"),
        (":scheme", "https"),
        (":path", "/index.html"),
        (":authority", "www.example.com"),
        ("custom-key", "custom-value"),
    ],
];

#[test]
fn appendix_c3_and_c4_requests() {
    check(
        4096,
        &[
            ("828684410f7777772e6578616d706c652e636f6d", REQUESTS[0], 57),
            ("828684be58086e6f2d6361636865", REQUESTS[1], 110),
            (
                "828785bf400a637573746f6d2d6b65790c637573746f6d2d76616c7565",
                REQUESTS[2],
                164,
            ),
        ],
    );
    check(
        4096,
        &[
            ("828684418cf1e3c2e5f23a6ba0ab90f4ff", REQUESTS[0], 57),
            ("828684be5886a8eb10649cbf", REQUESTS[1], 110),
            (
                "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf",
                REQUESTS[2],
                164,
            ),
        ],
    );
}

#[test]
fn appendix_c5_and_c6_responses_with_eviction() {
    let first = "Mon, 21 Oct 2013 20:13:21 GMT";
    let cookie = "foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1";
    let responses: [&[(&str, &str)]; 3] = [
        &[
            (":status", "302"),
            ("cache-control", "private"),
            ("date", first),
            ("location", "https://www.example.com"),
        ],
        &[
            (":status", "307"),
            ("cache-control", "private"),
            ("date", first),
            ("location", "https://www.example.com"),
        ],
        &[
            (":status", "200"),
            ("cache-control", "private"),
            ("date", "Mon, 21 Oct 2013 20:13:22 GMT"),
            ("location", "https://www.example.com"),
            ("content-encoding", "gzip"),
            ("set-cookie", cookie),
        ],
    ];
    check(
        256,
        &[
            (
                "4803333032580770726976617465611d4d6f6e2c203231204f637420323031332032303a31333a323120474d546e1768747470733a2f2f7777772e6578616d706c652e636f6d",
                responses[0],
                222,
            ),
            ("4803333037c1c0bf", responses[1], 222),
            (
                "88c1611d4d6f6e2c203231204f637420323031332032303a31333a323220474d54c05a04677a69707738666f6f3d4153444a4b48514b425a584f5157454f50495541585157454f49553b206d61782d6167653d333630303b2076657273696f6e3d31",
                responses[2],
                215,
            ),
        ],
    );
    check(
        256,
        &[
            (
                "488264025885aec3771a4b6196d07abe941054d444a8200595040b8166e082a62d1bff6e919d29ad171863c78f0b97c8e9ae82ae43d3",
                responses[0],
                222,
            ),
            ("4883640effc1c0bf", responses[1], 222),
            (
                "88c16196d07abe941054d444a8200595040b8166e084a62d1bffc05a839bd9ab77ad94e7821dd7f2e6c7b335dfdfcd5b3960d5af27087f3672c1ab270fb5291f9587316065c003ed4ee5b1063d5007",
                responses[2],
                215,
            ),
        ],
    );
}

#[test]
fn what_cannot_be_read_is_refused() {
    let broken = [
        "80",               // index 0
        "be",               // an entry that is not there
        "4005",             // a string that ends early
        "3fe21f",           // a table larger than allowed (4097)
        "8220",             // a change of size after a field
        "ffffffffffffff",   // an integer without end
        "0085ffffffffff00", // the end-of-string code
    ];
    for hex in broken {
        let mut block = Block::default();
        let read = Decoder::default().decode(&bytes(hex), &mut block, 1 << 16);
        assert_eq!(read, Err(Broken), "{hex}");
    }
}

#[test]
fn fields_that_http_forbids_are_marked_and_stay_so() {
    for (name, value) in [
        ("Upper", "1"),
        (":odd", "1"),
        ("", "1"),
        ("a", "1\r\nb: 2"),
        ("a b", ""),
    ] {
        let mut coded = vec![0x40, name.len() as u8];
        coded.extend(name.bytes());
        coded.push(value.len() as u8);
        coded.extend(value.bytes());
        let mut decoder = Decoder::default();
        let mut block = Block::default();
        decoder.decode(&coded, &mut block, 1 << 16).unwrap();
        assert_eq!(block.fields()[0].flags, BAD, "{name}");
        decoder.decode(&[0xbe], &mut block, 1 << 16).unwrap();
        assert_eq!(block.fields()[0].flags, BAD, "{name} from the table");
    }
}

#[test]
fn what_is_too_much_is_read_for_the_table_and_not_kept() {
    let mut decoder = Decoder::default();
    let mut block = Block::default();
    let mut coded = vec![0x40, 1, b'a', 127, 0x81, 0x06];
    coded.extend([b'x'; 896]);
    decoder.decode(&coded, &mut block, 2000).unwrap();
    assert!(!block.over);
    // One byte for each.
    let mut coded = vec![0xbe; 8];
    coded.extend(b"\x40\x01b\x01c\x82");
    decoder.decode(&coded, &mut block, 2000).unwrap();
    assert!(block.over);
    assert_eq!(block.fields.len(), 2);
    assert!(block.bytes.len() <= 2000);
    decoder.decode(&[0xbe], &mut block, 2000).unwrap();
    assert_eq!(read(&block), [("b".to_owned(), "c".to_owned())]);
    // A bomb.
    let bomb = decoder.decode(&[0xbf; 1000], &mut block, 2000);
    assert_eq!(bomb, Err(Broken));
    assert!(block.bytes.len() <= 2000);
}

#[test]
fn a_table_of_no_size_is_used_by_neither_side() {
    let mut encoder = Encoder::default();
    let mut decoder = Decoder::default();
    let mut block = Block::default();
    for size in [4096, 4096, 0, 0, 100_000, 4096] {
        encoder.resize(0);
        encoder.resize(size);
        let mut out = Vec::new();
        encoder.begin(&mut out);
        encoder.pair(b"x-habit", b"1", false, &mut out);
        encoder.pair(b"traceparent", b"1", false, &mut out);
        decoder.decode(&out, &mut block, 1 << 16).unwrap();
        assert_eq!(block.fields().len(), 2);
        assert!(encoder.entries().eq(decoder.entries()));
        assert_eq!(size == 0, encoder.size() == 0);
    }
}

#[test]
fn a_pair_is_written_as_a_field_of_a_block_is() {
    let pairs: [(&[u8], &[u8]); 8] = [
        (b":method", b"GET"),
        (b":path", b"/a"),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
        (b"traceparent", b"00-1-2-03"),
        (b"x-titan-odd", b"1"),
        (b"x-titan-old", b"1"),
        (b"x-any", b"2"),
    ];
    let (mut one, mut other) = (Encoder::default(), Encoder::default());
    for _ in 0..4 {
        let mut block = Block::default();
        let (mut fields, mut written) = (Vec::new(), Vec::new());
        for (name, value) in pairs {
            block.push(name, value);
            other.pair(name, value, false, &mut written);
        }
        for field in block.fields() {
            one.field(&block, field, &mut fields);
        }
        assert_eq!(fields, written);
    }
    assert_eq!(one.size(), other.size());
}

#[test]
fn a_unique_pair_enters_no_table_on_its_way() {
    let mut encoder = Encoder::default();
    let mut decoder = Decoder::default();
    let mut block = Block::default();
    for _ in 0..3 {
        let mut out = Vec::new();
        encoder.pair(b"authorization", b"secret", true, &mut out);
        encoder.pair(b"x-secret", b"secret", true, &mut out);
        decoder.decode(&out, &mut block, 1 << 16).unwrap();
        assert!(block.fields().iter().all(|field| field.flags == NEVER));
        assert_eq!(block.get(token::AUTHORIZATION), Some(&b"secret"[..]));
        // A proxy that passes them on keeps to it.
        let mut relayed = Vec::new();
        for field in block.fields() {
            encoder.field(&block, field, &mut relayed);
        }
        assert_eq!(relayed, out);
    }
    assert_eq!((encoder.size(), decoder.size()), (0, 0));
}

#[test]
fn fields_are_found_and_taken_out() {
    let mut block = Block::default();
    for (name, value) in [("a", "1"), ("x-titan-key", "2"), ("a", "3"), ("b", "4")] {
        block.push(name.as_bytes(), value.as_bytes());
    }
    assert_eq!(block.find(b"a"), Some(&b"1"[..]));
    block.retain(|block, field| block.value(field) != b"1" && field.token != token::X_TITAN_KEY);
    assert_eq!(block.find(b"a"), Some(&b"3"[..]));
    assert_eq!(
        (block.find(b"b"), block.find(b"c")),
        (Some(&b"4"[..]), None)
    );
    assert_eq!(block.get(token::X_TITAN_KEY), None);
}

#[test]
fn fields_with_the_same_hash_are_told_apart() {
    let mut encoder = Encoder::default();
    let mut decoder = Decoder::default();
    let mut block = Block::default();
    let mut out = Vec::new();
    for _ in 0..2 {
        encoder.habit(token::OTHER, b"a", b"1", 7, &mut out);
    }
    encoder.habit(token::OTHER, b"b", b"2", 7, &mut out);
    encoder.habit(token::OTHER, b"a1", b"", 7, &mut out);
    decoder.decode(&out, &mut block, 1 << 16).unwrap();
    let names: Vec<&[u8]> = block
        .fields()
        .iter()
        .map(|field| block.name(field))
        .collect();
    assert_eq!(names, [&b"a"[..], b"a", b"b", b"a1"]);
}

#[test]
fn what_repeats_takes_a_byte_and_what_does_not_enters_no_table() {
    let mut encoder = Encoder::default();
    let mut lengths = Vec::new();
    for turn in 0..3 {
        let mut block = Block::default();
        block.push(b":path", b"/titan.order.v1.Orders/Get");
        block.push(
            b"traceparent",
            format!("00-{turn:032}-{turn:016}-00").as_bytes(),
        );
        block.push(b"x-id", format!("{turn}").as_bytes());
        let mut out = Vec::new();
        for field in block.fields() {
            encoder.field(&block, field, &mut out);
        }
        lengths.push(out.len());
    }
    assert_eq!(
        encoder.entries().count(),
        2,
        "the path, and a traceparent for its name"
    );
    assert_eq!(lengths[2], 1 + (2 + 1 + 55) + (1 + 1 + 4 + 1 + 1));
}

/// Names and values of which some come again, some are in the static table, and some are large.
fn fields() -> impl Strategy<Value = Vec<(Vec<u8>, Vec<u8>, bool)>> {
    let name = prop_oneof![
        4 => prop::sample::select(fixed::FIELDS.iter().map(|field| field.0.to_vec()).collect::<Vec<_>>()),
        3 => prop::sample::select(
            [&b"traceparent"[..], b"x-titan-key", b"te", b"x-titan-odd", b"grpc-status"]
                .map(<[u8]>::to_vec).to_vec()),
        2 => "[a-c]{1,2}".prop_map(String::into_bytes),
        1 => "[a-z-]{1,40}".prop_map(String::into_bytes),
    ];
    let value = prop_oneof![
        4 => "[ab]?".prop_map(String::into_bytes),
        2 => prop::sample::select(vec![b"200".to_vec(), b"GET".to_vec(), b"trailers".to_vec()]),
        2 => prop::collection::vec(any::<u8>(), 0..60),
        1 => prop::collection::vec(any::<u8>(), 200..1500),
    ];
    prop::collection::vec((name, value, prop::bool::weighted(0.1)), 0..12)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn huffman_there_and_back(plain in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut coded = Vec::new();
        huffman::encoder::encode(&plain, &mut coded);
        prop_assert_eq!(coded.len(), huffman::encoder::coded_length(&plain));
        let mut out = Vec::new();
        prop_assert_eq!(huffman::decode(&coded, &mut out), Ok(()));
        prop_assert_eq!(out, plain);
    }

    /// Whatever is encoded is read again as it was, and both sides have the same table at all times.
    #[test]
    fn heads_there_and_back(heads in prop::collection::vec((fields(), prop::option::weighted(0.2, 0_usize..6000)), 1..30)) {
        let mut encoder = Encoder::default();
        let mut decoder = Decoder::default();
        let mut relayed = Encoder::default();
        let mut last = Decoder::default();
        for (fields, resize) in heads {
            if let Some(size) = resize {
                encoder.resize(size);
                encoder.resize(size / 2);
                encoder.resize(size);
            }
            let mut block = Block::default();
            for (name, value, never) in &fields {
                block.push(name, value);
                if *never {
                    block.fields.last_mut().unwrap().flags |= NEVER;
                }
            }
            let mut out = Vec::new();
            encoder.begin(&mut out);
            for field in block.fields() {
                encoder.field(&block, field, &mut out);
            }
            let mut read = Block::default();
            prop_assert_eq!(decoder.decode(&out, &mut read, 1 << 20), Ok(()));
            let pairs = |block: &Block| -> Vec<(Vec<u8>, Vec<u8>, u8)> {
                block.fields().iter().map(|field| (block.name(field).to_vec(), block.value(field).to_vec(), field.flags)).collect()
            };
            prop_assert_eq!(pairs(&block), pairs(&read));
            prop_assert_eq!(encoder.size(), decoder.size());
            prop_assert!(encoder.entries().eq(decoder.entries()));
            // Once more, as a relay does it.
            out.clear();
            for field in read.fields() {
                relayed.field(&read, field, &mut out);
            }
            let mut again = Block::default();
            prop_assert_eq!(last.decode(&out, &mut again, 1 << 20), Ok(()));
            prop_assert_eq!(pairs(&block), pairs(&again));
        }
    }

    #[test]
    fn anything_at_all_is_read_or_refused(coded in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut decoder = Decoder::default();
        let mut block = Block::default();
        for part in coded.chunks(20) {
            let _ = decoder.decode(part, &mut block, 4096);
        }
        prop_assert!(decoder.size() <= TABLE);
    }
}
