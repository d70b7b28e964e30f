//! Laws of tables, deltas and their encodings, checked on random tables.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use prost::Message as _;
use titan_routing::client::TableFile;
use titan_routing::{
    Assignment, AssignmentState, CellEndpoint, Delta, DeltaError, Epoch, Key, KeyOverride,
    KeyRange, KeyspaceMode, RoutingTable, proto,
};

fn cell_name(index: u8) -> String {
    format!("cell-{index:03}")
}

prop_compose! {
    /// Up to 12 cells; rows cut out of a line of random points, so that they never overlap.
    fn tables()(
        epoch in 1..1000_u64,
        hash in any::<bool>(),
        points in vec(0..Key::MAX.get(), 0..24),
        choices in vec((0..12_u8, 0..12_u8, 0..4_u8, 0..100_u64), 24),
        regions in vec(0..3_u8, 12),
        pins in btree_map(0..50_u64, 0..12_u8, 0..5),
    ) -> RoutingTable {
        let mut points = points;
        points.sort_unstable();
        points.dedup();
        let assignments = points
            .chunks_exact(2)
            .zip(choices)
            .map(|(ends, (cell, home, state, epoch))| Assignment {
                range: KeyRange::new(Key::new(ends[0]).unwrap(), Key::new(ends[1] - 1).unwrap())
                    .unwrap(),
                cell: cell_name(cell),
                home: cell_name(home),
                state: match state {
                    0 => AssignmentState::Pending,
                    1 => AssignmentState::Active,
                    2 => AssignmentState::Moving,
                    _ => AssignmentState::Fenced,
                },
                epoch: Epoch(epoch),
            })
            .collect();
        let cells = (0..12)
            .zip(regions)
            .map(|(index, region)| CellEndpoint {
                cell: cell_name(index),
                region: format!("region-{region}"),
                endpoint: format!("{}.svc.cluster.local", cell_name(index)),
            })
            .collect();
        let overrides = pins
            .into_iter()
            .map(|(key, cell)| KeyOverride { key: Key::new(key).unwrap(), cell: cell_name(cell) })
            .collect();
        let mode = if hash { KeyspaceMode::Hash } else { KeyspaceMode::UserId };
        RoutingTable::new(Epoch(epoch), mode, assignments, cells, overrides).unwrap()
    }
}

proptest! {
    #[test]
    fn a_delta_makes_the_new_table_out_of_the_old(a in tables(), b in tables()) {
        prop_assert_eq!(Delta::between(&a, &b).apply(&a).unwrap(), b);
    }

    #[test]
    fn a_delta_between_equal_tables_is_empty(a in tables()) {
        prop_assert_eq!(Delta::between(&a, &a).changes(), 0);
    }

    #[test]
    fn a_delta_refuses_another_base(a in tables(), b in tables(), c in tables()) {
        let applied = Delta::between(&a, &b).apply(&c);
        if a.epoch() != c.epoch() {
            let refused = matches!(applied, Err(DeltaError::OtherBase { .. }));
            prop_assert!(refused);
        } else if let Ok(table) = applied {
            // The same epoch with other content: the checksum lets nothing through but the right result.
            prop_assert_eq!(table, b);
        }
    }

    #[test]
    fn a_delta_survives_the_wire(a in tables(), b in tables()) {
        let delta = Delta::between(&a, &b);
        let bytes = proto::Delta::from(&delta).encode_to_vec();
        let read = Delta::try_from(proto::Delta::decode(bytes.as_slice()).unwrap()).unwrap();
        prop_assert_eq!(read, delta);
    }

    #[test]
    fn a_snapshot_survives_the_wire(a in tables()) {
        let bytes = proto::Snapshot::from(&a).encode_to_vec();
        let read = RoutingTable::try_from(proto::Snapshot::decode(bytes.as_slice()).unwrap());
        prop_assert_eq!(read.unwrap(), a);
    }

    #[test]
    fn a_changed_snapshot_is_refused(a in tables(), at in any::<prop::sample::Index>(), flip in 1..=255_u8) {
        let mut bytes = proto::Snapshot::from(&a).encode_to_vec();
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        if let Ok(snapshot) = proto::Snapshot::decode(bytes.as_slice())
            && let Ok(read) = RoutingTable::try_from(snapshot)
        {
            // Only a change that decodes to the same content may pass.
            prop_assert_eq!(read, a);
        }
    }

    #[test]
    fn bytes_from_outside_never_panic(bytes in vec(any::<u8>(), 0..512)) {
        if let Ok(message) = proto::WatchResponse::decode(bytes.as_slice()) {
            match message.event {
                Some(proto::watch_response::Event::Snapshot(snapshot)) => {
                    let _ = RoutingTable::try_from(snapshot);
                }
                Some(proto::watch_response::Event::Delta(delta)) => {
                    let _ = Delta::try_from(delta).map(|delta| {
                        delta.apply(&RoutingTable::empty(KeyspaceMode::UserId))
                    });
                }
                _ => {}
            }
        }
        let _ = TableFile::new(std::path::Path::new("."), "main").decode(&bytes);
    }

    #[test]
    fn the_checksum_does_not_depend_on_the_order_of_the_parts(a in tables()) {
        let mut rows = a.assignments().to_vec();
        rows.reverse();
        let mut cells = a.cells().to_vec();
        cells.reverse();
        let b = RoutingTable::new(a.epoch(), a.mode(), rows, cells, a.overrides().to_vec()).unwrap();
        prop_assert_eq!(a.checksum(), b.checksum());
    }

    #[test]
    fn equal_checksums_mean_equal_tables(a in tables(), b in tables()) {
        prop_assert_eq!(a.checksum() == b.checksum(), a == b);
    }

    #[test]
    fn lookup_agrees_with_a_scan(a in tables(), random in 0..Key::MAX.get(), pick in any::<prop::sample::Index>()) {
        let edges: Vec<u64> = a
            .assignments()
            .iter()
            .flat_map(|row| {
                let (first, last) = (row.range.first().get(), row.range.last().get());
                [first.saturating_sub(1), first, last, last + 1]
            })
            .chain([0, 1, 2, 3, random])
            .collect();
        let key = Key::new(edges[pick.index(edges.len())]).unwrap();
        let row = a.assignments().iter().find(|row| row.range.contains(key));
        let pin = a.overrides().iter().find(|pin| pin.key == key);
        let wanted = pin.map(|pin| &pin.cell).or(row.map(|row| &row.cell));
        let found = a.lookup(key);
        prop_assert_eq!(found.map(|found| &found.cell.cell), wanted);
        prop_assert_eq!(found.is_some_and(|found| found.pinned), pin.is_some());
        if let Some(found) = found {
            prop_assert_eq!(found.assignment, row);
        }
    }

    #[test]
    fn the_file_on_disk_reads_back_and_any_change_is_noticed(
        a in tables(),
        at in any::<prop::sample::Index>(),
        flip in 1..=255_u8,
    ) {
        let directory = tempfile::tempdir().unwrap();
        let file = TableFile::new(directory.path(), "main");
        prop_assert!(file.load().unwrap().is_none());
        file.save(&a).unwrap();
        prop_assert_eq!(&file.load().unwrap().unwrap().0, &a);

        let mut bytes = std::fs::read(file.path()).unwrap();
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        if let Ok(read) = file.decode(&bytes) {
            prop_assert_eq!(&read, &a);
        }
        prop_assert!(file.decode(&bytes[..at]).is_err());
    }
}
