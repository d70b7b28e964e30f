//! Which address is the default: exactly one, as long as there is any.

use uuid::Uuid;

/// The most addresses of one user.
pub const MAX_ADDRESSES: usize = 50;

/// The ids of a user's addresses, the oldest first, and the default among them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AddressBook {
    ids: Vec<Uuid>,
    default: Option<Uuid>,
}

/// Why an address cannot be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there are {MAX_ADDRESSES} addresses already; remove one first")]
pub struct Full;

impl AddressBook {
    /// A book from stored rows, the oldest first.
    #[must_use]
    pub fn new(rows: impl IntoIterator<Item = (Uuid, bool)>) -> Self {
        let mut book = AddressBook::default();
        for (id, is_default) in rows {
            book.ids.push(id);
            if is_default {
                book.default = Some(id);
            }
        }
        book
    }

    /// The default.
    #[must_use]
    pub fn default_id(&self) -> Option<Uuid> {
        self.default
    }

    /// The ids, the oldest first.
    #[must_use]
    pub fn ids(&self) -> &[Uuid] {
        &self.ids
    }

    /// Adds an address. The first one is the default in any case.
    ///
    /// # Errors
    /// When there are too many.
    pub fn add(&mut self, id: Uuid, make_default: bool) -> Result<(), Full> {
        if self.ids.len() >= MAX_ADDRESSES {
            return Err(Full);
        }
        self.ids.push(id);
        if make_default || self.default.is_none() {
            self.default = Some(id);
        }
        Ok(())
    }

    /// Removes an address; the newest that is left becomes the default when it was it. False when there is none.
    pub fn remove(&mut self, id: Uuid) -> bool {
        let before = self.ids.len();
        self.ids.retain(|other| *other != id);
        if self.default == Some(id) {
            self.default = self.ids.last().copied();
        }
        self.ids.len() < before
    }

    /// Makes an address the default. False when there is none.
    pub fn set_default(&mut self, id: Uuid) -> bool {
        let known = self.ids.contains(&id);
        if known {
            self.default = Some(id);
        }
        known
    }
}
