//! Sessions as files.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use mesh_control::Client;

use crate::failure::Failure;
use crate::screen::Screen;
use crate::units::count;

pub(super) async fn export(
    client: &Client,
    screen: &Screen,
    session: &str,
    output: Option<&Path>,
) -> Result<(), Failure> {
    let mut export = client.export_session(session).await?;
    // A session holds what was said in confidence: the file is its owner's alone.
    let open = |path: &Path| {
        let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        opened.map_err(|error| Failure::new("output", format!("{} cannot be made: {error}", path.display())))
    };
    let mut file = output.map(open).transpose()?;
    let mut last = Vec::new();
    while let Some(bytes) = export.next().await? {
        match &mut file {
            Some(file) => file
                .write_all(&bytes)
                .map_err(|error| Failure::new("output", format!("the export cannot be written: {error}")))?,
            None => screen.print_bytes(&bytes)?,
        }
        keep_last_line(&mut last, &bytes);
    }
    if !is_end(&last) {
        return Err(Failure::new("broken", "the export broke off before its end")
            .with_mend("export it again; what came is no whole session"));
    }
    if let Some(path) = output {
        screen.note(&format!("written to {}", path.display()));
    }
    Ok(())
}

/// The beginning of the last line that is not empty, of which 64 bytes tell whether it is the end.
fn keep_last_line(last: &mut Vec<u8>, bytes: &[u8]) {
    for part in bytes.split_inclusive(|byte| *byte == b'\n') {
        if last.last() == Some(&b'\n') {
            last.clear();
        }
        let room = 64usize.saturating_sub(last.len());
        last.extend_from_slice(&part[..part.len().min(room)]);
        if part.ends_with(b"\n") && last.last() != Some(&b'\n') {
            last.push(b'\n');
        }
    }
}

fn is_end(line: &[u8]) -> bool {
    line.starts_with(b"{\"end\":")
}

pub(super) async fn import(client: &Client, screen: &Screen, file: &Path) -> Result<(), Failure> {
    let opened = if file == Path::new("-") {
        std::io::stdin().as_fd().try_clone_to_owned().map(File::from)
    } else {
        File::open(file)
    };
    let opened =
        opened.map_err(|error| Failure::usage(format!("{} cannot be read: {error}", file.display())))?;
    let reader = tokio::fs::File::from_std(opened);
    let imported = client.import_session(reader).await?;
    let added = usize::try_from(imported.added).unwrap_or(usize::MAX);
    screen.note(&format!("{} came in; the last is number {}", count(added, "event"), imported.last));
    screen.show(&imported, |imported| imported.session.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_export_is_whole_when_its_last_line_says_so() {
        let ends = |chunks: &[&str]| {
            let mut last = Vec::new();
            chunks.iter().for_each(|chunk| keep_last_line(&mut last, chunk.as_bytes()));
            is_end(&last)
        };
        let long = format!("{{\"number\":1,\"text\":\"{}\"}}\n", "x".repeat(500));
        assert!(ends(&["{\"qmt_session\":1}\n", &long, "{\"en", "d\":1,\"blake3\":\"ab\"}\n"]));
        assert!(ends(&["{\"qmt_session\":1}\n{\"end\":1}\n"]));
        assert!(!ends(&["{\"qmt_session\":1}\n", &long]));
        assert!(!ends(&[&long[..40], "{\"end\":1}\n"]));
        assert!(!ends(&["{\"end\":1}\n", "{\"number\":2}\n"]));
        assert!(!ends(&[]));
    }
}
