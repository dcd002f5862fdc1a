//! `logs`: the node's last log lines, and those to come.

use std::time::Duration;

use mesh_control::{Client, LogLine, LogPage, LogQuery};
use mesh_identity::UnixTime;

use crate::args::LogsArgs;
use crate::failure::Failure;
use crate::screen::Screen;

/// Between two attempts to reach a node that went away.
const AGAIN: Duration = Duration::from_secs(1);

pub(crate) async fn logs(client: &Client, screen: &Screen, args: LogsArgs) -> Result<(), Failure> {
    let mut query =
        LogQuery { after: None, level: args.level.map(Into::into), text: args.text, limit: Some(args.lines) };
    if !args.follow {
        let page = client.logs(&query).await?;
        return screen.show(&page.lines, |lines| lines.iter().map(text).collect());
    }
    loop {
        match follow(client, screen, &mut query).await {
            Ok(()) => {}
            Err(Failed::Node(error)) if error.may_pass() && query.after.is_some() => {}
            Err(Failed::Node(error)) => return Err(error.into()),
            Err(Failed::Screen(failure)) => return Err(failure),
        }
        screen.progress("the node is gone; waiting for it ...");
        tokio::time::sleep(AGAIN).await;
    }
}

enum Failed {
    Node(mesh_control::ClientError),
    Screen(Failure),
}

/// Until the stream ends.
async fn follow(client: &Client, screen: &Screen, query: &mut LogQuery) -> Result<(), Failed> {
    let mut events = client.follow_logs(query).await.map_err(Failed::Node)?;
    while let Some(LogPage { lines, through, lost }) = events.next().await.map_err(Failed::Node)? {
        screen.clear_progress();
        if lost > 0 {
            screen.note(&format!("{lost} lines are not kept any more"));
        }
        for line in &lines {
            let shown = if screen.is_json() { json(line) } else { text(line) };
            screen.print(&shown).map_err(Failed::Screen)?;
        }
        query.after = Some(through);
        query.limit = None;
    }
    Ok(())
}

fn json(line: &LogLine) -> String {
    let mut text = serde_json::to_string(line).expect("a line has string keys and whole numbers");
    text.push('\n');
    text
}

/// As the node itself writes it to standard error.
fn text(line: &LogLine) -> String {
    let at = UnixTime(line.at_ms / 1000);
    let level = line.level.to_string().to_uppercase();
    let fields: String = line.fields.iter().map(|(name, value)| format!(" {name}={value}")).collect();
    format!("{at} {level:>5} {}: {}{fields}\n", line.target, line.message)
}
