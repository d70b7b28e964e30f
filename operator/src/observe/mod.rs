//! What the operator sees: routing tables, what objects refer to, what routers report, and which events of a watch matter.

mod debounce;
pub mod own_writes;
mod readable;
mod references;
mod router_reports;
pub mod tables;
pub mod unseen;

pub(crate) use debounce::{Debounce, debounce};
pub(crate) use readable::{KeepLast, Reader, Unreadable, readable};
pub(crate) use references::{Dereferenced, as_ref, dereference, open_claim};
pub(crate) use router_reports::{announce, count};

/// How many bytes the note of an Event may have.
const NOTE: usize = 1024;

/// A text as the note of an Event, cut where it is too long.
pub(crate) fn note(text: &str) -> String {
    text[..text.floor_char_boundary(NOTE)].to_owned()
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_note_is_cut_between_two_characters() {
        let long = format!("x{}", "é".repeat(600));
        let note = super::note(&long);
        assert_eq!(note.len(), 1023);
        assert!(long.starts_with(&note));
        assert_eq!(super::note("short"), "short");
    }
}
