//! Orders without stores: commands decide events, events make the order.

mod amounts;
mod decide;
mod event;
mod fold;

pub use amounts::{Amounts, LineShare, SubOrder, line_shares, split_by_seller};
pub use decide::{
    OrderError, Placement, ReturnedLine, cancel, place, return_lines, split, transition,
};
pub use event::{Event, Outgoing, outgoing};
pub use fold::{Line, Order, State};
