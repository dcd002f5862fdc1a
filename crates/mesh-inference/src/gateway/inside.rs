//! Requests that are answered within this process: HTTP over a pipe in memory.
//!
//! No task stands behind the answering end: whoever reads and writes the asking end polls it too, so dropping that one
//! ends the answer and all that it holds, at once.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};

/// What the pipe holds in each direction, in bytes: as much as a wire reads at a time.
const PIPE_BYTES: usize = 64 * 1024;

/// The asking end of a pipe.
pub(crate) struct Inside {
    pipe: DuplexStream,
    /// None once it has ended; what it wrote can still be read.
    answering: Option<BoxFuture<'static, ()>>,
}

impl Inside {
    /// `answer` gets the other end, and closes it when it is done.
    pub(crate) fn new<F>(answer: impl FnOnce(DuplexStream) -> F) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (pipe, far) = tokio::io::duplex(PIPE_BYTES);
        Self { pipe, answering: Some(answer(far).boxed()) }
    }

    fn drive(&mut self, cx: &mut Context<'_>) {
        if let Some(answering) = &mut self.answering
            && answering.poll_unpin(cx).is_ready()
        {
            self.answering = None;
        }
    }
}

impl AsyncRead for Inside {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.drive(cx);
        Pin::new(&mut this.pipe).poll_read(cx, buf)
    }
}

impl AsyncWrite for Inside {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.pipe).poll_write(cx, bytes);
        this.drive(cx);
        written
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.drive(cx);
        Pin::new(&mut this.pipe).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().pipe).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn more_than_the_pipe_holds_goes_both_ways_in_one_task() {
        let sent: Vec<u8> = (0..PIPE_BYTES * 5).map(|at| u8::try_from(at % 251).unwrap()).collect();
        let mut inside = Inside::new(|mut far| async move {
            let mut got = vec![0; PIPE_BYTES * 5];
            far.read_exact(&mut got).await.unwrap();
            far.write_all(&got).await.unwrap();
        });
        inside.write_all(&sent).await.unwrap();
        let mut got = Vec::new();
        inside.read_to_end(&mut got).await.unwrap();
        assert!(got == sent);
    }

    #[tokio::test]
    async fn dropping_the_asking_end_drops_what_the_answer_holds() {
        let (held, mut dropped) = tokio::sync::oneshot::channel::<()>();
        let mut inside = Inside::new(|far| async move {
            let _both = (far, held);
            std::future::pending::<()>().await;
        });
        inside.write_all(b"x").await.unwrap();
        assert!(
            dropped.try_recv().is_err_and(|error| error == tokio::sync::oneshot::error::TryRecvError::Empty)
        );
        drop(inside);
        assert!(
            dropped.try_recv().is_err_and(|error| error == tokio::sync::oneshot::error::TryRecvError::Closed)
        );
    }
}
