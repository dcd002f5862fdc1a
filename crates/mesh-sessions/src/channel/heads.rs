//! A connection's timer for the heads of its requests: set with each of them, and all but never over.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::rt::Timer;
use tokio::time::{Instant, Sleep, sleep_until};

/// One timer of the runtime for every deadline of a connection, one deadline at a time. A deadline that is put off leaves it as it
/// is, and is looked at again when it is over: to set and drop one for each request takes the lock of all timers twice.
#[derive(Clone, Default)]
pub(crate) struct Heads(Arc<Mutex<Option<Pin<Box<Sleep>>>>>);

/// Resolves at its deadline.
struct Head {
    heads: Heads,
    deadline: Instant,
}

impl Timer for Heads {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn hyper::rt::Sleep>> {
        Box::pin(Head { heads: self.clone(), deadline: Instant::now() + duration })
    }

    fn sleep_until(&self, deadline: std::time::Instant) -> Pin<Box<dyn hyper::rt::Sleep>> {
        Box::pin(Head { heads: self.clone(), deadline: deadline.into() })
    }

    fn now(&self) -> std::time::Instant {
        Instant::now().into_std()
    }
}

impl hyper::rt::Sleep for Head {}

impl Future for Head {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut set = self.heads.0.lock().unwrap_or_else(PoisonError::into_inner);
        let set = set.get_or_insert_with(|| Box::pin(sleep_until(self.deadline)));
        if set.deadline() > self.deadline {
            set.as_mut().reset(self.deadline);
        }
        while set.as_mut().poll(cx).is_ready() {
            if set.deadline() >= self.deadline {
                return Poll::Ready(());
            }
            set.as_mut().reset(self.deadline);
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn each_deadline_is_kept_though_one_timer_stands_for_all() {
        let (heads, begun) = (Heads::default(), Instant::now());
        for _ in 0..10 {
            // A head that comes after ten seconds of the minute it has.
            let head = heads.sleep(MINUTE);
            assert!(tokio::time::timeout(Duration::from_secs(10), head).await.is_err());
        }
        assert_eq!(begun.elapsed(), Duration::from_secs(100));
        heads.sleep_until(heads.now() + MINUTE).await;
        assert_eq!(begun.elapsed(), Duration::from_secs(160), "the last one has its minute, too");
        heads.sleep(Duration::from_secs(1)).await;
        drop(heads.sleep(MINUTE));
        heads.sleep(Duration::from_secs(1)).await;
        assert_eq!(begun.elapsed(), Duration::from_secs(162), "an earlier one is not held up by a later one");
    }
}
