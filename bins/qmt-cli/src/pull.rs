//! Downloads: `models pull`, `models pulls`.

use std::time::{Duration, Instant};

use mesh_control::{Client, PullRequest, PullState, PullView};
use tokio::time::sleep;

use crate::failure::Failure;
use crate::screen::{Screen, harmless};
use crate::table::Table;
use crate::units;

/// How often a download is looked at: what a person takes for moving, at no cost to the node.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Width of the bar, in characters.
const BAR_WIDTH: u64 = 24;

pub(crate) async fn list(client: &Client, screen: &Screen) -> Result<(), Failure> {
    let pulls = client.pulls().await?;
    screen.show(&pulls, |pulls| listing(pulls))?;
    if pulls.is_empty() {
        screen.note("no downloads; begin one with `qmt-cli models pull org/repo/file.gguf`");
    }
    Ok(())
}

fn listing(pulls: &[PullView]) -> String {
    if pulls.is_empty() {
        return String::new();
    }
    let mut table = Table::new(&["MODEL", "STATE", "DETAIL"]);
    for pull in pulls {
        let detail = match &pull.error {
            Some(error) => error.message.clone(),
            None => pull.detail.clone(),
        };
        table.row([harmless(&pull.model), pull.state.to_string(), harmless(&detail)]);
    }
    table.to_string()
}

pub(crate) async fn pull(client: &Client, screen: &Screen, model: String) -> Result<(), Failure> {
    let begin = Instant::now();
    let request = PullRequest { model };
    let interrupt = tokio::signal::ctrl_c();
    tokio::pin!(interrupt);
    let mut view = client.pull(&request).await?;
    loop {
        match view.state {
            PullState::Done => break,
            PullState::Failed | PullState::Stopped => return Err(not_pulled(&view)),
            _ => screen.progress(&progress(&view)),
        }
        tokio::select! {
            () = sleep(LOOK_EVERY) => {}
            _ = &mut interrupt => {
                let stopped = client.stop_pull(&request).await?;
                let message = format!("the download of {} was stopped at {}", stopped.model, units::bytes(stopped.bytes));
                return Err(Failure::interrupted(message).with_mend("pull it again: it goes on from there"));
            }
        }
        let name = view.model;
        view = client.pulls().await?.into_iter().find(|one| one.model == name).ok_or_else(|| {
            Failure::new("stopped", format!("the node knows of no download of {name} any more"))
        })?;
    }
    let took = units::elapsed(begin.elapsed());
    screen.show(&view, |view| done(view, &took))?;
    if view.checked.as_deref() == Some("not") {
        screen.note("its source names no SHA-256, so nothing but its length was checked; #sha256=... behind a URL gives one");
    }
    Ok(())
}

fn done(view: &PullView, took: &str) -> String {
    let size = units::bytes(view.bytes);
    let at = view.files.first().map_or("", String::as_str);
    match view.checked.as_deref() {
        Some("here") => format!("{} is here already: {at} ({size})", view.model),
        checked => {
            let checked = match checked {
                Some("sha256") => ", SHA-256 checked",
                Some("members") => ", SHA-256 checked against what members say",
                _ => "",
            };
            format!("{at}: {size} after {took}{checked}")
        }
    }
}

fn not_pulled(view: &PullView) -> Failure {
    match &view.error {
        Some(error) => {
            let failure = Failure::new(error.code.as_str(), harmless(&error.message));
            match &error.mend {
                Some(mend) => failure.with_mend(harmless(mend)),
                None => failure,
            }
        }
        None => Failure::new("stopped", format!("the download of {} was stopped", view.model))
            .with_mend("pull it again: it goes on from there"),
    }
}

/// `[#####-----] 41 % 104 MB of 253 MB, 11 MB/s, 13 s left, from hub.example`
fn progress(view: &PullView) -> String {
    let (Some(total), PullState::Downloading) = (view.total_bytes.filter(|total| *total > 0), view.state)
    else {
        return harmless(&view.detail);
    };
    let parts =
        |of: u64| u64::try_from(u128::from(view.bytes) * u128::from(of) / u128::from(total)).unwrap_or(of);
    let bar: String = (0..BAR_WIDTH).map(|at| if at < parts(BAR_WIDTH) { '#' } else { '-' }).collect();
    let left = total.saturating_sub(view.bytes).checked_div(view.bytes_per_second);
    let left = left.map_or_else(String::new, |left| format!(", {} left", units::duration(left)));
    let from = view
        .detail
        .split_once(", from ")
        .map_or_else(String::new, |(_, from)| format!(", from {}", harmless(from)));
    let (bytes, all, rate) =
        (units::bytes(view.bytes), units::bytes(total), units::bytes(view.bytes_per_second));
    format!("[{bar}] {} % {bytes} of {all}, {rate}/s{left}{from}", parts(100).min(100))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_download_is_a_bar_with_its_rate_and_what_is_left() {
        let view = PullView {
            model: "org/repo/m.gguf".to_owned(),
            state: PullState::Downloading,
            bytes: 104_000_000,
            total_bytes: Some(253_000_000),
            bytes_per_second: 11_000_000,
            detail: "104 of 253 MB, 11.0 MB/s, from hub.example\x1b".to_owned(),
            ..PullView::default()
        };
        assert_eq!(
            progress(&view),
            "[#########---------------] 41 % 104 MB of 253 MB, 11 MB/s, 13 s left, from hub.example?"
        );
        let asking = PullView { state: PullState::Asking, detail: "asking where it is".to_owned(), ..view };
        assert_eq!(progress(&asking), "asking where it is");
    }

    #[test]
    fn the_end_says_where_it_is_and_what_was_checked() {
        let view = |checked: &str| PullView {
            model: "org/repo/m.gguf".to_owned(),
            bytes: 253_000_000,
            files: vec!["/m/m.gguf".to_owned()],
            checked: Some(checked.to_owned()),
            ..PullView::default()
        };
        assert_eq!(done(&view("sha256"), "3 s"), "/m/m.gguf: 253 MB after 3 s, SHA-256 checked");
        assert_eq!(done(&view("not"), "3 s"), "/m/m.gguf: 253 MB after 3 s");
        assert_eq!(done(&view("here"), "3 s"), "org/repo/m.gguf is here already: /m/m.gguf (253 MB)");
    }
}
