//! Whether the other end of a connection of HTTP/2 is still there.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use h2::{Ping, PingPong};
use tokio::time::{Instant, Sleep};

/// Asks now and then, and gives up when no answer comes.
pub struct KeepAlive {
    pings: PingPong,
    every: Duration,
    patience: Duration,
    alarm: Pin<Box<Sleep>>,
    asked: bool,
}

impl KeepAlive {
    /// Asks `every` so often and waits for an answer with `patience`.
    #[must_use]
    pub fn new(pings: PingPong, every: Duration, patience: Duration) -> Self {
        KeepAlive {
            pings,
            every,
            patience,
            alarm: Box::pin(tokio::time::sleep(every)),
            asked: false,
        }
    }

    /// Ready when the other end is gone. It is left in peace while it is not `wanted`.
    pub fn poll_gone(&mut self, context: &mut Context<'_>, wanted: impl Fn() -> bool) -> Poll<()> {
        loop {
            if self.asked {
                match self.pings.poll_pong(context) {
                    Poll::Ready(Ok(_)) => {
                        self.asked = false;
                        self.next(self.every);
                    }
                    // The connection ends by itself.
                    Poll::Ready(Err(_)) => return Poll::Pending,
                    Poll::Pending => {
                        ready!(self.alarm.as_mut().poll(context));
                        return Poll::Ready(());
                    }
                }
            }
            ready!(self.alarm.as_mut().poll(context));
            self.asked = wanted() && self.pings.send_ping(Ping::opaque()).is_ok();
            let pause = if self.asked {
                self.patience
            } else {
                self.every
            };
            self.next(pause);
        }
    }

    fn next(&mut self, pause: Duration) {
        self.alarm.as_mut().reset(Instant::now() + pause);
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    #[tokio::test]
    async fn who_does_not_answer_is_gone() {
        let (here, _silent) = tokio::io::duplex(1 << 16);
        let (_sender, mut connection) = h2::client::handshake(here).await.unwrap();
        let short = Duration::from_millis(10);
        let mut keepalive = KeepAlive::new(connection.ping_pong().unwrap(), short, short);
        poll_fn(|context| {
            let _ = Pin::new(&mut connection).poll(context);
            keepalive.poll_gone(context, || true)
        })
        .await;
    }
}
