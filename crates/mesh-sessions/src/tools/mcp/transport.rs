//! What of a server's messages is let in.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rmcp::RoleClient;
use rmcp::model::{JsonRpcMessage, ServerNotification, ServerRequest};
use rmcp::service::{RxJsonRpcMessage, TxJsonRpcMessage};
use rmcp::transport::Transport;

/// Pings that are answered at a time; a server that sends more of them floods.
const PINGS_MAX: usize = 16;

/// Lets in answers, pings and the word that the tools have changed. The rest is for clients that offer more than this one
/// does, and each message of it would be a task and a line in the log.
pub(super) struct Narrow<T> {
    inner: T,
    unanswered: Arc<AtomicUsize>,
}

impl<T> Narrow<T> {
    pub(super) fn new(inner: T) -> Self {
        Self { inner, unanswered: Arc::default() }
    }

    fn lets_in(&self, message: &RxJsonRpcMessage<RoleClient>) -> bool {
        match message {
            JsonRpcMessage::Response(_) | JsonRpcMessage::Error(_) => true,
            JsonRpcMessage::Notification(notification) => {
                matches!(notification.notification, ServerNotification::ToolListChangedNotification(_))
            }
            JsonRpcMessage::Request(request) => {
                matches!(request.request, ServerRequest::PingRequest(_))
                    && self.unanswered.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_ok()
            }
        }
    }
}

fn one_more(unanswered: usize) -> Option<usize> {
    (unanswered < PINGS_MAX).then_some(unanswered + 1)
}

impl<T: Transport<RoleClient>> Transport<RoleClient> for Narrow<T> {
    type Error = T::Error;

    fn send(
        &mut self,
        message: TxJsonRpcMessage<RoleClient>,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send + 'static {
        let is_answer = matches!(message, JsonRpcMessage::Response(_) | JsonRpcMessage::Error(_));
        let unanswered = self.unanswered.clone();
        let sent = self.inner.send(message);
        async move {
            let result = sent.await;
            if is_answer {
                unanswered.fetch_sub(1, Ordering::Relaxed);
            }
            result
        }
    }

    async fn receive(&mut self) -> Option<RxJsonRpcMessage<RoleClient>> {
        loop {
            let message = self.inner.receive().await?;
            if self.lets_in(&message) {
                return Some(message);
            }
        }
    }

    async fn close(&mut self) -> Result<(), Self::Error> {
        self.inner.close().await
    }
}
