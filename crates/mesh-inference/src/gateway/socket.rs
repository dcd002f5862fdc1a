//! A caller's TCP connection with the deadlines that HTTP itself does not keep: a request line and headers that never
//! end, and a caller that stops reading.

use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

/// After a refusal, what a caller still sends is read and dropped for this long, so that closing does not reset the
/// connection before it has read the answer (a 413, say).
const LINGER_TIME: Duration = Duration::from_secs(1);
/// At most this much is dropped so, in bytes.
const LINGER_BYTES: usize = 4 * 1024 * 1024;

/// Whether a request is being answered on a connection.
#[derive(Debug, Clone, Default)]
pub(crate) struct Busy(Arc<Flags>);

#[derive(Debug, Default)]
struct Flags {
    busy: AtomicBool,
    refused: AtomicBool,
}

/// Marks its connection as busy while it lives.
#[derive(Debug)]
pub(crate) struct BusyGuard(Busy);

impl Busy {
    pub(crate) fn begin(&self) -> BusyGuard {
        self.0.busy.store(true, Ordering::Release);
        self.0.refused.store(false, Ordering::Release);
        BusyGuard(self.clone())
    }

    /// Notes that a request was refused whose body may still be on its way.
    pub(crate) fn refused(&self) {
        self.0.refused.store(true, Ordering::Release);
    }

    fn get(&self) -> bool {
        self.0.busy.load(Ordering::Acquire)
    }
}

impl Drop for BusyGuard {
    fn drop(&mut self) {
        self.0.0.busy.store(false, Ordering::Release);
    }
}

/// A caller's connection.
pub(crate) struct Socket {
    tcp: TcpStream,
    busy: Busy,
    header_timeout: Duration,
    write_timeout: Duration,
    /// When the headers now arriving must be complete. Set from the first byte; for the first request from the accept.
    header_due: Option<Instant>,
    header_alarm: Option<Pin<Box<Sleep>>>,
    write_alarm: Option<Pin<Box<Sleep>>>,
    linger: Option<Linger>,
}

struct Linger {
    alarm: Pin<Box<Sleep>>,
    left_bytes: usize,
}

impl Socket {
    pub(crate) fn new(tcp: TcpStream, busy: Busy, header_timeout: Duration, write_timeout: Duration) -> Self {
        Self {
            tcp,
            busy,
            header_timeout,
            write_timeout,
            header_due: Some(Instant::now() + header_timeout),
            header_alarm: None,
            write_alarm: None,
            linger: None,
        }
    }

    fn poll_header_alarm(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(due) = self.header_due else {
            return Poll::Pending;
        };
        let alarm = self.header_alarm.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due)));
        if alarm.deadline() != due {
            alarm.as_mut().reset(due);
        }
        ready!(alarm.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "request headers did not arrive in time")))
    }

    fn watch_write<T>(&mut self, cx: &mut Context<'_>, wrote: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if wrote.is_ready() {
            self.write_alarm = None;
            return wrote;
        }
        let after = self.write_timeout;
        let alarm = self.write_alarm.get_or_insert_with(|| Box::pin(tokio::time::sleep(after)));
        ready!(alarm.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the caller stopped reading")))
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let read = Pin::new(&mut this.tcp).poll_read(cx, buf);
        if this.busy.get() {
            this.header_due = None;
            return read;
        }
        if read.is_pending() {
            return this.poll_header_alarm(cx);
        }
        if buf.filled().len() > before && this.header_due.is_none() {
            this.header_due = Some(Instant::now() + this.header_timeout);
        }
        read
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let wrote = Pin::new(&mut this.tcp).poll_write(cx, buf);
        this.watch_write(cx, wrote)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let wrote = Pin::new(&mut this.tcp).poll_write_vectored(cx, bufs);
        this.watch_write(cx, wrote)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().tcp).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.linger.is_none() {
            ready!(Pin::new(&mut this.tcp).poll_shutdown(cx))?;
            if !this.busy.0.refused.load(Ordering::Acquire) {
                return Poll::Ready(Ok(()));
            }
            let alarm = Box::pin(tokio::time::sleep(LINGER_TIME));
            this.linger = Some(Linger { alarm, left_bytes: LINGER_BYTES });
        }
        let Some(linger) = &mut this.linger else { return Poll::Ready(Ok(())) };
        let mut dropped = [0u8; 4096];
        while linger.left_bytes > 0 {
            let mut buf = ReadBuf::new(&mut dropped);
            match Pin::new(&mut this.tcp).poll_read(cx, &mut buf) {
                Poll::Ready(Ok(())) if !buf.filled().is_empty() => {
                    linger.left_bytes = linger.left_bytes.saturating_sub(buf.filled().len());
                }
                Poll::Ready(_) => return Poll::Ready(Ok(())),
                Poll::Pending => {
                    ready!(linger.alarm.as_mut().poll(cx));
                    return Poll::Ready(Ok(()));
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}
