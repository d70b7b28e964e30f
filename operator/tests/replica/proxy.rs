//! A proxy before a server whose connections can die without a word, as those to a node that lost its power do.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

pub struct Proxy {
    pub address: SocketAddr,
    swallows: Arc<AtomicBool>,
    swallowed: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// To a port of this machine.
    pub async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let swallows = Arc::new(AtomicBool::new(false));
        let swallowed = Arc::new(AtomicUsize::new(0));
        let (swallow, count) = (swallows.clone(), swallowed.clone());
        let task = tokio::spawn(async move {
            loop {
                let (mut client, _) = listener.accept().await.unwrap();
                if swallow.load(Ordering::Acquire) {
                    count.fetch_add(1, Ordering::AcqRel);
                    // Kept open until the client gives up, and never answered.
                    tokio::spawn(async move {
                        let mut nothing = tokio::io::sink();
                        let _ = tokio::io::copy(&mut client, &mut nothing).await;
                    });
                } else {
                    tokio::spawn(async move {
                        if let Ok(mut server) = TcpStream::connect(("127.0.0.1", port)).await {
                            let _ = copy_bidirectional(&mut client, &mut server).await;
                        }
                    });
                }
            }
        });
        Proxy {
            address,
            swallows,
            swallowed,
            task,
        }
    }

    /// Whether connections that are made from now on are never answered.
    pub fn swallow(&self, swallow: bool) {
        self.swallows.store(swallow, Ordering::Release);
    }

    /// How many connections were never answered.
    pub fn swallowed(&self) -> usize {
        self.swallowed.load(Ordering::Acquire)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}
