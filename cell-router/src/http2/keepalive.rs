//! Whether the other end of a connection of HTTP/2 is still there.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

use super::link::Link;

/// Asks now and then, and gives up when neither an answer comes nor anything else that only somebody who is there can do.
///
/// The question waits behind what was to be sent before it, here and in the kernels of both ends: who reads slowly answers
/// late.
pub struct KeepAlive {
    every: Duration,
    patience: Duration,
    alarm: Pin<Box<Sleep>>,
    asked: bool,
    /// When there was a sign of life since it was asked.
    seen: Option<Instant>,
}

impl KeepAlive {
    /// Asks `every` so often and waits for an answer with `patience`.
    #[must_use]
    pub fn new(every: Duration, patience: Duration) -> Self {
        KeepAlive {
            every,
            patience,
            alarm: Box::pin(tokio::time::sleep(every)),
            asked: false,
            seen: None,
        }
    }

    /// The other end did something.
    pub fn seen(&mut self) {
        if self.asked {
            self.seen = Some(Instant::now());
        }
    }

    /// Ready when the other end is gone. It is left in peace while it is not `wanted`.
    pub fn poll_gone(
        &mut self,
        context: &mut Context<'_>,
        link: &Link,
        wanted: impl Fn() -> bool,
    ) -> Poll<()> {
        loop {
            if self.asked && link.has_ponged() {
                self.asked = false;
                self.next(self.every);
            }
            ready!(self.alarm.as_mut().poll(context));
            if self.asked {
                let Some(seen) = self.seen.take() else {
                    return Poll::Ready(());
                };
                self.alarm.as_mut().reset(seen + self.patience);
                continue;
            }
            self.asked = wanted();
            self.seen = None;
            if self.asked {
                link.ping();
            }
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
