//! The checksum of a table: xxh3 over its content in one canonical order.

use xxhash_rust::xxh3::Xxh3Default;

use crate::{AssignmentState, KeyspaceMode, RoutingTable};

/// Starts every checksum, so that a change of the encoding changes all of them.
const VERSION: &[u8] = b"titan-routing-table/1";

impl RoutingTable {
    /// xxh3 (64 bits) over the whole content, epoch included. Equal tables have equal checksums, whatever the order
    /// their parts came in.
    #[must_use]
    pub fn checksum(&self) -> u64 {
        let mut hash = Canonical(Xxh3Default::new());
        hash.0.update(VERSION);
        hash.number(self.epoch().0);
        hash.number(match self.mode() {
            KeyspaceMode::UserId => 1,
            KeyspaceMode::Hash => 2,
        });
        hash.number(self.assignments().len() as u64);
        for row in self.assignments() {
            hash.number(row.range.first().get());
            hash.number(row.range.last().get());
            hash.text(&row.cell);
            hash.text(&row.home);
            hash.number(match row.state {
                AssignmentState::Pending => 1,
                AssignmentState::Active => 2,
                AssignmentState::Moving => 3,
                AssignmentState::Fenced => 4,
            });
            hash.number(row.epoch.0);
        }
        hash.number(self.cells().len() as u64);
        for cell in self.cells() {
            hash.text(&cell.cell);
            hash.text(&cell.region);
            hash.text(&cell.endpoint);
        }
        hash.number(self.overrides().len() as u64);
        for pin in self.overrides() {
            hash.number(pin.key.get());
            hash.text(&pin.cell);
        }
        hash.0.digest()
    }

    /// The checksum as it is written: 16 hexadecimal digits.
    #[must_use]
    pub fn checksum_hex(&self) -> String {
        format!("{:016x}", self.checksum())
    }
}

struct Canonical(Xxh3Default);

impl Canonical {
    fn number(&mut self, number: u64) {
        self.0.update(&number.to_le_bytes());
    }

    fn text(&mut self, text: &str) {
        self.number(text.len() as u64);
        self.0.update(text.as_bytes());
    }
}
