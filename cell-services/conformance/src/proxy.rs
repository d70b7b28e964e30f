//! A way to a server that can be closed and opened: a leader that dies, hangs, and is replaced.

use std::net::SocketAddr;

use anyhow::Context;
use tokio::net::{TcpListener, TcpStream, lookup_host};
use tokio::sync::watch;

/// What happens to connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// They go through.
    Open,
    /// They are closed, and new ones too: the process died.
    Closed,
    /// They hang: the machine is gone, and nobody says so.
    Silent,
}

/// See the module.
#[derive(Debug)]
pub struct Proxy {
    way: watch::Sender<Way>,
    address: SocketAddr,
}

impl Proxy {
    /// A way to `target` on a free port of loopback.
    ///
    /// # Errors
    /// When there is no such target.
    pub async fn to(target: (&str, u16)) -> anyhow::Result<Self> {
        let target = lookup_host(target).await?.next().context("no address")?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (way, ways) = watch::channel(Way::Open);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(carry(client, target, ways.clone()));
            }
        });
        Ok(Proxy { way, address })
    }

    /// The port that it listens on.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Changes what happens to connections, those that are open included. What hung, hangs for good.
    pub fn set(&self, way: Way) {
        self.way.send_replace(way);
    }
}

async fn carry(mut client: TcpStream, target: SocketAddr, mut ways: watch::Receiver<Way>) {
    let way = *ways.borrow_and_update();
    if way == Way::Open {
        let Ok(mut server) = TcpStream::connect(target).await else {
            return;
        };
        tokio::select! {
            _ = tokio::io::copy_bidirectional(&mut client, &mut server) => return,
            _ = ways.changed() => {}
        }
    }
    if *ways.borrow() == Way::Silent {
        // Until the test ends.
        let _ = ways.wait_for(|way| *way == Way::Closed).await;
    }
}
