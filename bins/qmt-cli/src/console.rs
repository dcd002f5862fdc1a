//! `console`: a link that opens the node's page in a browser.

use mesh_control::{Client, ConsoleLink, LinkRequest};
use mesh_identity::UnixTime;

use crate::args::ConsoleArgs;
use crate::failure::Failure;
use crate::screen::Screen;
use crate::units;

pub(crate) async fn console(client: &Client, screen: &Screen, args: ConsoleArgs) -> Result<(), Failure> {
    if args.close {
        let closed = client.close_console().await?;
        return screen.show(&closed, |_| "every browser is signed out\n".to_owned());
    }
    let link = client.console_link(&LinkRequest { read_only: args.read_only }).await?;
    screen.show(&link, |link| format!("{}\n", link.url))?;
    screen.note(&remark(&link, UnixTime::now().0));
    Ok(())
}

fn remark(link: &ConsoleLink, now: u64) -> String {
    let what = if link.read_only { "to watch" } else { "the console" };
    format!(
        "opens {what} once, in a browser of this machine, within {}; whoever opens it first is let in",
        units::duration(link.expires_at.saturating_sub(now)),
    )
}
