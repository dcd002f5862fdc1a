//! The last log lines, kept for the console and `qmt-cli logs`.
//!
//! What is never logged (keys, invites, prompts, completions) is not here either: these are the lines that go to standard
//! error, and no others.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use mesh_control::{LogLevel, LogLine, LogPage, LogQuery};
use tokio::sync::watch;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

/// Lines kept: a busy node's last hour.
const LINES_MAX: usize = 10_000;
/// Bytes of all lines kept, so that long ones cannot take more memory than many short ones.
const BYTES_MAX: usize = 4 * 1024 * 1024;
/// The longest message, and the longest value of a field, bytes; what is longer is cut.
const TEXT_BYTES_MAX: usize = 2 * 1024;
/// Fields of a line.
const FIELDS_MAX: usize = 32;
/// Lines of one answer when it is not said how many, and the most.
const PAGE: usize = 500;
const PAGE_MAX: usize = 10_000;

/// The kept lines; a handle.
#[derive(Clone)]
pub struct Logs {
    kept: Arc<Mutex<Kept>>,
    last: watch::Sender<u64>,
}

#[derive(Default)]
struct Kept {
    lines: VecDeque<Arc<LogLine>>,
    bytes: usize,
    last: u64,
}

impl Default for Logs {
    fn default() -> Self {
        Self { kept: Arc::default(), last: watch::Sender::new(0) }
    }
}

impl fmt::Debug for Logs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Logs(..)")
    }
}

impl Logs {
    /// The layer that keeps what passes it.
    pub fn layer(&self) -> Keep {
        Keep(self.clone())
    }

    /// The lines that the query asks for, oldest first: behind `after` the first ones, without `after` the last ones.
    pub fn page(&self, query: &LogQuery) -> LogPage {
        let limit =
            query.limit.map_or(PAGE, |limit| usize::try_from(limit).unwrap_or(PAGE_MAX)).min(PAGE_MAX);
        let words = query.text.as_deref().unwrap_or_default().to_lowercase();
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let first = kept.lines.front().map_or(kept.last + 1, |line| line.number);
        // A number that was not given yet is of a node that has been started again since: all is new to who asks.
        let after = query.after.filter(|after| *after <= kept.last).unwrap_or(0);
        // Numbers have no gaps, so the place of a line follows from its number.
        let from =
            usize::try_from((after + 1).saturating_sub(first)).unwrap_or(usize::MAX).min(kept.lines.len());
        let fits =
            |line: &&Arc<LogLine>| query.level.is_none_or(|level| line.level >= level) && has(line, &words);
        let found = kept.lines.range(from..).filter(fits);
        let lines: Vec<LogLine> = if query.after.is_some() {
            found.take(limit).map(|line| LogLine::clone(line)).collect()
        } else {
            let mut last: Vec<LogLine> = found.rev().take(limit).map(|line| LogLine::clone(line)).collect();
            last.reverse();
            last
        };
        let is_full = query.after.is_some() && lines.len() == limit;
        let through = lines.last().filter(|_| is_full).map_or(kept.last, |line| line.number);
        let lost = if query.after.is_some() { first.saturating_sub(after + 1) } else { 0 };
        LogPage { lines, through, lost }
    }

    /// Waits until there is a line behind `after`. Cancel safe.
    pub async fn wait_behind(&self, after: u64) {
        let mut last = self.last.subscribe();
        // The sender lives as long as `self`.
        let _ = last.wait_for(|last| *last > after).await;
    }

    fn keep(&self, mut line: LogLine) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.last += 1;
        line.number = kept.last;
        kept.bytes += weight(&line);
        kept.lines.push_back(Arc::new(line));
        while kept.lines.len() > LINES_MAX || kept.bytes > BYTES_MAX {
            let Some(old) = kept.lines.pop_front() else { break };
            kept.bytes -= weight(&old);
        }
        self.last.send_replace(kept.last);
    }
}

fn weight(line: &LogLine) -> usize {
    let fields: usize = line.fields.iter().map(|(name, value)| name.len() + value.len() + 48).sum();
    line.message.len() + line.target.len() + fields + 128
}

fn has(line: &LogLine, words: &str) -> bool {
    words.is_empty()
        || line.message.to_lowercase().contains(words)
        || line.target.to_lowercase().contains(words)
        || line
            .fields
            .iter()
            .any(|(name, value)| name.contains(words) || value.to_lowercase().contains(words))
}

/// Keeps lines; see [`Logs::layer`].
#[derive(Debug)]
pub struct Keep(Logs);

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Keep {
    /// Remembers the trace of a request's span.
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut said = Said::default();
        if attributes.fields().field(TRACE).is_some() {
            attributes.record(&mut said);
        }
        let trace = said.fields.into_iter().find(|(name, _)| name == TRACE);
        if let (Some((_, trace)), Some(span)) = (trace, context.span(id)) {
            span.extensions_mut().insert(Trace(trace));
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut said = Said::default();
        event.record(&mut said);
        let spans = context.event_scope(event).into_iter().flatten();
        let mut traces = spans.filter_map(|span| Some(span.extensions().get::<Trace>()?.0.clone()));
        said.fields.extend(traces.next().map(|trace| (TRACE.to_owned(), trace)));
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.0.keep(LogLine {
            number: 0,
            at_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
            level: level(*event.metadata().level()),
            target: event.metadata().target().to_owned(),
            message: said.message,
            fields: said.fields,
        });
    }
}

fn level(level: Level) -> LogLevel {
    match level {
        Level::ERROR => LogLevel::Error,
        Level::WARN => LogLevel::Warn,
        Level::INFO => LogLevel::Info,
        Level::DEBUG => LogLevel::Debug,
        Level::TRACE => LogLevel::Trace,
    }
}

/// The field of a request's span that names its trace.
const TRACE: &str = "trace";

/// The trace that a span belongs to.
struct Trace(String);

#[derive(Default)]
struct Said {
    message: String,
    fields: Vec<(String, String)>,
}

impl Said {
    fn take(&mut self, field: &Field, mut text: String) {
        text.truncate(text.floor_char_boundary(TEXT_BYTES_MAX));
        if field.name() == "message" {
            self.message = text;
        } else if self.fields.len() < FIELDS_MAX {
            self.fields.push((field.name().to_owned(), text));
        }
    }
}

impl Visit for Said {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.take(field, value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.take(field, format!("{value:?}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing_subscriber::layer::SubscriberExt;

    #[test]
    fn a_line_within_a_request_names_its_trace() {
        let logs = Logs::default();
        let subscriber = tracing_subscriber::registry().with(logs.layer());
        tracing::subscriber::with_default(subscriber, || {
            let request = tracing::info_span!("inference.request", trace = "4bf9");
            let _within = request.enter();
            tracing::info_span!("within").in_scope(|| tracing::info!(model = "m", "said"));
        });
        let page = logs.page(&LogQuery { text: Some("4bf9".to_owned()), ..LogQuery::default() });
        assert_eq!(page.lines.len(), 1, "{page:?}");
        assert!(page.lines[0].fields.contains(&("trace".to_owned(), "4bf9".to_owned())));
    }

    fn logged(count: usize) -> Logs {
        let logs = Logs::default();
        let subscriber = tracing_subscriber::registry().with(logs.layer());
        tracing::subscriber::with_default(subscriber, || {
            for number in 1..=count {
                if number % 10 == 0 {
                    tracing::warn!(number, "every tenth");
                } else {
                    tracing::info!(number, peer = "Alpha", "a line");
                }
            }
        });
        logs
    }

    fn numbers(page: &LogPage) -> Vec<u64> {
        page.lines.iter().map(|line| line.number).collect()
    }

    #[test]
    fn pages_follow_each_other_without_gap_or_repeat() {
        let logs = logged(25);
        let last = logs.page(&LogQuery { limit: Some(3), ..LogQuery::default() });
        assert_eq!((numbers(&last), last.through, last.lost), (vec![23, 24, 25], 25, 0));
        let (mut after, mut all) = (0, Vec::new());
        loop {
            let page = logs.page(&LogQuery { after: Some(after), limit: Some(10), ..LogQuery::default() });
            if page.lines.is_empty() {
                break;
            }
            all.extend(numbers(&page));
            after = page.through;
        }
        assert_eq!(all, (1..=25).collect::<Vec<u64>>());
    }

    #[test]
    fn who_followed_an_earlier_run_starts_anew() {
        let page = logged(3).page(&LogQuery { after: Some(500), ..LogQuery::default() });
        assert_eq!((numbers(&page), page.through, page.lost), (vec![1, 2, 3], 3, 0));
    }

    #[test]
    fn a_filter_goes_by_level_and_by_any_text() {
        let logs = logged(30);
        let warned = logs.page(&LogQuery { level: Some(LogLevel::Warn), ..LogQuery::default() });
        assert_eq!(numbers(&warned), [10, 20, 30]);
        assert_eq!(warned.through, 30, "a follower goes on behind what did not fit");
        for text in ["alpha", "PEER", "A LINE"] {
            assert_eq!(
                logs.page(&LogQuery { text: Some(text.to_owned()), ..LogQuery::default() }).lines.len(),
                27,
                "{text}"
            );
        }
        assert!(
            logs.page(&LogQuery { text: Some("nothing".to_owned()), ..LogQuery::default() }).lines.is_empty()
        );
    }

    #[test]
    fn what_is_kept_is_bounded_and_what_was_lost_is_said() {
        let logs = logged(LINES_MAX + 7);
        let page = logs.page(&LogQuery { after: Some(2), limit: Some(1), ..LogQuery::default() });
        assert_eq!((numbers(&page), page.lost), (vec![8], 5));
        let logs = Logs::default();
        let subscriber = tracing_subscriber::registry().with(logs.layer());
        tracing::subscriber::with_default(subscriber, || {
            let long = "é".repeat(TEXT_BYTES_MAX);
            (0..4000).for_each(|_| tracing::info!(long, "{long}"));
        });
        let kept = logs.kept.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(kept.bytes <= BYTES_MAX && kept.lines.len() > 500, "{} lines", kept.lines.len());
        assert!(kept.lines.iter().all(|line| line.message.len() <= TEXT_BYTES_MAX));
    }

    #[tokio::test]
    async fn a_follower_wakes_with_the_next_line() {
        let logs = logged(3);
        logs.wait_behind(2).await;
        let waiting = tokio::spawn({
            let logs = logs.clone();
            async move { logs.wait_behind(3).await }
        });
        tracing::subscriber::with_default(tracing_subscriber::registry().with(logs.layer()), || {
            tracing::info!("x")
        });
        assert!(tokio::time::timeout(std::time::Duration::from_secs(10), waiting).await.is_ok());
    }
}
