//! Polling a future again at once when it wakes itself, instead of going round by the scheduler.
//!
//! hyper passes a message from one half of a connection to the other by waking the task of the other half, and here all
//! halves of a request stand in one task. Left alone, each such wake puts the task at the end of a run queue and rouses
//! another thread to look for it: two system calls and a switch of threads, several times for each request and each piece.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use futures_util::task::AtomicWaker;

/// Polls in one go; then others get their turn.
const TURNS_MAX: usize = 16;

/// Runs `future` as one unit: a wake that reaches it while it is polled leads to another poll right after this one.
/// Cancel safe if `future` is.
pub(crate) async fn settled<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let wakes = Arc::new(Wakes::default());
    let waker = Waker::from(wakes.clone());
    poll_fn(move |outer| {
        wakes.task.register(outer.waker());
        let mut inner = Context::from_waker(&waker);
        for _ in 0..TURNS_MAX {
            wakes.begin_turn();
            if let ready @ Poll::Ready(_) = future.as_mut().poll(&mut inner) {
                return ready;
            }
            if !wakes.end_turn() {
                return Poll::Pending;
            }
        }
        outer.waker().wake_by_ref();
        Poll::Pending
    })
    .await
}

/// Where the wakes of the future go. Either the turn that runs sees a wake at its end, or the wake reaches the task: both
/// sides write their own flag before they read the other's.
#[derive(Default)]
struct Wakes {
    in_turn: AtomicBool,
    woken: AtomicBool,
    task: AtomicWaker,
}

impl Wakes {
    fn begin_turn(&self) {
        self.in_turn.store(true, Ordering::SeqCst);
        self.woken.store(false, Ordering::SeqCst);
    }

    /// Whether a wake came since the turn began.
    fn end_turn(&self) -> bool {
        self.in_turn.store(false, Ordering::SeqCst);
        self.woken.swap(false, Ordering::SeqCst)
    }
}

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.woken.store(true, Ordering::SeqCst);
        if !self.in_turn.load(Ordering::SeqCst) {
            self.task.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    /// Counts the wakes of a task.
    #[derive(Default)]
    struct Counted(AtomicUsize);

    impl Wake for Counted {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Wakes itself in each of its first `turns` polls, then keeps its waker and waits.
    fn self_waking(turns: usize, kept: Arc<AtomicWaker>) -> (impl Future<Output = ()>, Arc<AtomicUsize>) {
        let polls = Arc::new(AtomicUsize::new(0));
        let counted = polls.clone();
        let future = poll_fn(move |cx| {
            if counted.fetch_add(1, Ordering::SeqCst) < turns {
                cx.waker().wake_by_ref();
            }
            kept.register(cx.waker());
            Poll::Pending
        });
        (future, polls)
    }

    #[test]
    fn own_wakes_stay_inside_and_others_reach_the_task() {
        let (task, kept) = (Arc::new(Counted::default()), Arc::new(AtomicWaker::new()));
        let (future, polls) = self_waking(3, kept.clone());
        let mut future = Box::pin(settled(future));
        let waker = Waker::from(task.clone());
        let mut cx = Context::from_waker(&waker);
        assert!(future.as_mut().poll(&mut cx).is_pending());
        assert_eq!((polls.load(Ordering::SeqCst), task.0.load(Ordering::SeqCst)), (4, 0));
        kept.wake();
        assert_eq!(task.0.load(Ordering::SeqCst), 1);
        assert!(future.as_mut().poll(&mut cx).is_pending());
        assert_eq!(polls.load(Ordering::SeqCst), 5);
    }

    #[test]
    fn a_future_that_never_rests_gives_way() {
        let task = Arc::new(Counted::default());
        let (future, polls) = self_waking(usize::MAX, Arc::default());
        let mut future = Box::pin(settled(future));
        let waker = Waker::from(task.clone());
        assert!(future.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        assert_eq!((polls.load(Ordering::SeqCst), task.0.load(Ordering::SeqCst)), (TURNS_MAX, 1));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn no_wake_from_another_thread_is_lost() {
        for _ in 0..200 {
            let (sender, mut receiver) = tokio::sync::mpsc::channel(1);
            let sending = tokio::spawn(async move {
                for number in 0..100_u32 {
                    sender.send(number).await.unwrap();
                }
            });
            let received = settled(async move {
                let mut next = 0;
                while let Some(number) = receiver.recv().await {
                    assert_eq!(number, next);
                    next += 1;
                }
                next
            });
            let received = tokio::time::timeout(std::time::Duration::from_secs(60), received).await;
            assert_eq!(received, Ok(100));
            sending.await.unwrap();
        }
    }
}
