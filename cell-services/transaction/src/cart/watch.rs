//! Watching a cart: its versions, as they come.

use std::time::Duration;

use cell_kit::ownership::Owner;
use futures::Stream;
use titan_proto::cart::v1::Cart;
use tonic::Status;

use super::Carts;

/// How soon a change made in another replica is seen.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// The cart, and again whenever its version is another one. Ends when the server drains, and with a refusal when
/// the owner leaves the cell.
pub(super) fn stream(
    carts: Carts,
    owner: Owner,
) -> impl Stream<Item = Result<Cart, Status>> + Send {
    let changes = carts.cache.watch(owner.key);
    futures::stream::unfold(
        (carts, changes, None, false),
        move |(carts, mut changes, last, ended)| async move {
            if ended {
                return None;
            }
            let mut first = last.is_none();
            loop {
                if !first {
                    tokio::select! {
                        () = carts.draining.cancelled() => return None,
                        _ = changes.changed() => {}
                        () = tokio::time::sleep(LOOK_AGAIN) => {}
                    }
                }
                first = false;
                let cart = match carts
                    .database
                    .ownership()
                    .check(owner.key, owner.epoch)
                    .await
                {
                    Ok(_) => carts
                        .read(owner.key)
                        .await
                        .map(|stored| stored.to_wire(owner.key)),
                    Err(refusal) => Err(refusal.into()),
                };
                match cart {
                    Ok(cart) if last.is_some_and(|version| version >= cart.version) => {}
                    Ok(cart) => {
                        let version = Some(cart.version);
                        return Some((Ok(cart), (carts, changes, version, false)));
                    }
                    Err(status) => return Some((Err(status), (carts, changes, last, true))),
                }
            }
        },
    )
}
