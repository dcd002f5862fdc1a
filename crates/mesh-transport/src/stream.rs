//! One byte stream on a link: two halves, each with its own end.

use std::{
    io,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
};

use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::CancellationToken;

use crate::error::{CloseCode, ClosedWhy, ConnectionLost, ResetCode, StreamFault};

/// The writing half as a driver provides it.
pub trait SendHalf: AsyncWrite + Send + Sync + Unpin + 'static {
    /// Abandons the half: bytes not yet delivered are lost, the reader sees the code.
    fn reset(&mut self, code: ResetCode);
    /// Resolves when the reader has stopped reading or the connection is lost (or all was delivered after the end).
    fn stopped(&self) -> BoxFuture<'static, ()>;
}

/// The reading half as a driver provides it.
pub trait RecvHalf: AsyncRead + Send + Sync + Unpin + 'static {
    /// Tells the writer that nobody reads any more.
    fn stop(&mut self, code: ResetCode);
}

/// A value that lives as long as a half does; links count their streams with it.
pub(crate) type Held = Arc<dyn Send + Sync>;

/// Says of a link that nothing may pass on it any more, not even what has arrived and was not read.
#[derive(Debug, Default)]
pub(crate) struct Cut {
    why: OnceLock<CloseCode>,
    token: CancellationToken,
}

impl Cut {
    /// Cuts every stream; only the first cause counts.
    pub(crate) fn cut(&self, why: CloseCode) {
        // Set before the token is, so that who waited for it finds the cause.
        let _ = self.why.set(why);
        self.token.cancel();
    }

    /// Whether it was cut.
    pub(crate) fn is_cut(&self) -> bool {
        self.why.get().is_some()
    }

    fn check(&self) -> Result<(), StreamFault> {
        match self.why.get() {
            Some(code) => Err(StreamFault::Lost(ConnectionLost { why: ClosedWhy::Local(*code) })),
            None => Ok(()),
        }
    }
}

/// Fails once the link of a half was cut; a half without a link never is.
fn check(cut: &Option<Arc<Cut>>) -> Result<(), StreamFault> {
    cut.as_ref().map_or(Ok(()), |cut| cut.check())
}

/// What a half did, while its link may have been cut: a driver that fails for it does not know why.
fn or_cut<T>(cut: &Option<Arc<Cut>>, done: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
    done.map(|done| done.or_else(|error| check(cut).map_err(io::Error::from).and(Err(error))))
}

fn cut_off(cut: &Option<Arc<Cut>>) -> BoxFuture<'static, ()> {
    match cut {
        Some(cut) => Box::pin(cut.token.clone().cancelled_owned()),
        None => Box::pin(std::future::pending()),
    }
}

/// The writing half of a [`Stream`].
///
/// `shutdown` ends it properly (the reader sees end of file); dropped before that, it is reset and the reader sees an
/// error, so a cut-off answer is never taken for a whole one.
pub struct SendStream {
    half: Box<dyn SendHalf>,
    over: bool,
    held: Vec<Held>,
    cut: Option<Arc<Cut>>,
}

/// The reading half of a [`Stream`]. Dropped before the end of file, it tells the writer to stop.
pub struct RecvStream {
    half: Box<dyn RecvHalf>,
    over: bool,
    /// Set with `over` when the end was not a proper one: a second read must not look like end of file.
    failed: bool,
    held: Vec<Held>,
    cut: Option<Arc<Cut>>,
}

/// A byte stream to a peer in both directions, each direction with its own end.
///
/// Reading and writing are cancel safe as far as tokio's own `read` and `write` are; `write_all` and `read_exact`
/// are not.
pub struct Stream {
    send: SendStream,
    recv: RecvStream,
}

impl Stream {
    /// Puts a driver's halves together.
    pub fn from_halves(send: Box<dyn SendHalf>, recv: Box<dyn RecvHalf>) -> Self {
        let send = SendStream { half: send, over: false, held: Vec::new(), cut: None };
        Self {
            send,
            recv: RecvStream { half: recv, over: false, failed: false, held: Vec::new(), cut: None },
        }
    }

    /// The two halves, to be used from two tasks.
    pub fn split(self) -> (SendStream, RecvStream) {
        (self.send, self.recv)
    }

    /// Puts two halves together again (they need not have belonged to one stream).
    pub fn join(send: SendStream, recv: RecvStream) -> Self {
        Self { send, recv }
    }

    /// Abandons both directions with a code that the peer reads.
    pub fn reset(mut self, code: ResetCode) {
        self.send.reset_in_place(code);
        self.recv.stop_in_place(code);
    }

    /// Resolves when the peer no longer reads what we write: it cancelled, or the link is gone. Cancel safe.
    pub fn cancelled(&self) -> BoxFuture<'static, ()> {
        self.send.cancelled()
    }

    /// Resolves when this node has cut the link off, since the peer may not be here any more: from then on both halves
    /// fail, and what was read before should go no further. Cancel safe.
    pub fn cut_off(&self) -> BoxFuture<'static, ()> {
        cut_off(&self.recv.cut)
    }

    pub(crate) fn hold(&mut self, held: Held) {
        self.send.held.push(held.clone());
        self.recv.held.push(held);
    }

    /// Ties both halves to the link that they are on.
    pub(crate) fn tie(&mut self, cut: &Arc<Cut>) {
        self.send.cut = Some(cut.clone());
        self.recv.cut = Some(cut.clone());
    }
}

impl SendStream {
    /// Abandons this half with a code that the reader sees.
    pub fn reset(mut self, code: ResetCode) {
        self.reset_in_place(code);
    }

    /// Resolves when the peer no longer reads: it cancelled, or the link is gone (after the end was sent also when
    /// all was delivered). Cancel safe.
    pub fn cancelled(&self) -> BoxFuture<'static, ()> {
        self.half.stopped()
    }

    fn reset_in_place(&mut self, code: ResetCode) {
        if !self.over {
            self.over = true;
            self.half.reset(code);
        }
    }
}

impl RecvStream {
    /// Stops reading; the writer's next write fails with the code.
    pub fn stop(mut self, code: ResetCode) {
        self.stop_in_place(code);
    }

    fn stop_in_place(&mut self, code: ResetCode) {
        if !self.over {
            self.over = true;
            self.half.stop(code);
        }
    }
}

impl Drop for SendStream {
    fn drop(&mut self) {
        self.reset_in_place(ResetCode::CANCELLED);
    }
}

impl Drop for RecvStream {
    fn drop(&mut self) {
        self.stop_in_place(ResetCode::CANCELLED);
    }
}

impl AsyncWrite for SendStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.over {
            return Poll::Ready(Err(StreamFault::Ended.into()));
        }
        check(&self.cut)?;
        let written = Pin::new(&mut *self.half).poll_write(cx, buf);
        or_cut(&self.cut, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.over {
            return Poll::Ready(Ok(()));
        }
        let flushed = Pin::new(&mut *self.half).poll_flush(cx);
        or_cut(&self.cut, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.over {
            return Poll::Ready(Ok(()));
        }
        check(&self.cut)?;
        let ended = Pin::new(&mut *self.half).poll_shutdown(cx);
        let ended = or_cut(&self.cut, ended);
        if let Poll::Ready(Ok(())) = &ended {
            self.over = true;
        }
        ended
    }
}

impl AsyncRead for RecvStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.failed {
            return Poll::Ready(Err(StreamFault::Ended.into()));
        }
        if self.over || buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        let read = match check(&self.cut) {
            Ok(()) => {
                let read = Pin::new(&mut *self.half).poll_read(cx, buf);
                or_cut(&self.cut, read)
            }
            Err(fault) => Poll::Ready(Err(fault.into())),
        };
        match &read {
            Poll::Ready(Ok(())) if buf.filled().len() == before => self.over = true,
            Poll::Ready(Err(_)) => (self.over, self.failed) = (true, true),
            _ => {}
        }
        read
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.send).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.send).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.send).poll_shutdown(cx)
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.recv).poll_read(cx, buf)
    }
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stream").finish_non_exhaustive()
    }
}

impl std::fmt::Debug for SendStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SendStream").field("over", &self.over).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for RecvStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RecvStream").field("over", &self.over).finish_non_exhaustive()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// A half whose link is cut while it is at work, and which fails then as a driver does: without knowing why.
    struct CutMeanwhile(Arc<Cut>);

    impl CutMeanwhile {
        fn fails<T>(&self) -> Poll<io::Result<T>> {
            self.0.cut(CloseCode::Revoked);
            let why = ClosedWhy::Local(CloseCode::Done);
            Poll::Ready(Err(StreamFault::Lost(ConnectionLost { why }).into()))
        }
    }

    impl SendHalf for CutMeanwhile {
        fn reset(&mut self, _code: ResetCode) {}

        fn stopped(&self) -> BoxFuture<'static, ()> {
            Box::pin(std::future::pending())
        }
    }

    impl RecvHalf for CutMeanwhile {
        fn stop(&mut self, _code: ResetCode) {}
    }

    impl AsyncWrite for CutMeanwhile {
        fn poll_write(self: Pin<&mut Self>, _cx: &mut Context<'_>, _buf: &[u8]) -> Poll<io::Result<usize>> {
            self.fails()
        }

        fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.fails()
        }

        fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.fails()
        }
    }

    impl AsyncRead for CutMeanwhile {
        fn poll_read(
            self: Pin<&mut Self>,
            _cx: &mut Context<'_>,
            _buf: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            self.fails()
        }
    }

    #[tokio::test]
    async fn a_half_whose_link_is_cut_while_it_works_names_the_cause_of_the_cut() {
        let stream = || {
            let cut = Arc::new(Cut::default());
            let halves = [(); 2].map(|()| Box::new(CutMeanwhile(cut.clone())));
            let [send, recv] = halves;
            let mut stream = Stream::from_halves(send, recv);
            stream.tie(&cut);
            stream
        };
        let errors = [
            stream().read_u8().await.unwrap_err(),
            stream().write_u8(1).await.unwrap_err(),
            stream().flush().await.unwrap_err(),
            stream().shutdown().await.unwrap_err(),
        ];
        for error in errors {
            assert!(format!("{error:?}").contains("Revoked"), "{error:?}");
        }
    }
}
