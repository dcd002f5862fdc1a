//! The log file of an instance.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// How many instances of one model may log at a time.
const FILES_MAX: u32 = 100;
const TAIL_BYTES: u64 = 8 << 10;
const TAIL_LINES: usize = 5;
const TAIL_LINE_CHARS: usize = 200;

/// One file, held by a lock as long as this value or a child that writes to it lives.
#[derive(Debug)]
pub(crate) struct Log {
    file: File,
    path: PathBuf,
    /// Where the present attempt begins.
    start: u64,
}

impl Log {
    /// Opens the first free `<model>-<n>.log`; a file larger than `bytes_max` becomes `<model>-<n>.log.old` first.
    pub(crate) fn open(folder: &Path, model: &str, bytes_max: u64) -> io::Result<Self> {
        std::fs::create_dir_all(folder)?;
        let name: String = model
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' })
            .take(100)
            .collect();
        for number in 0..FILES_MAX {
            let path = folder.join(format!("{name}-{number}.log"));
            let mut file = append(&path)?;
            if file.try_lock().is_err() {
                continue;
            }
            if file.metadata()?.len() > bytes_max {
                std::fs::rename(&path, path.with_extension("log.old"))?;
                file = append(&path)?;
                if file.try_lock().is_err() {
                    continue;
                }
            }
            let start = file.metadata()?.len();
            return Ok(Self { file, path, start });
        }
        Err(io::Error::other(format!("{FILES_MAX} instances of {model} log already")))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Another handle of the file, for a child, whose attempt begins here.
    pub(crate) fn for_child(&mut self) -> io::Result<File> {
        self.start = self.file.metadata()?.len();
        self.file.try_clone()
    }

    /// The last lines of the present attempt.
    pub(crate) fn tail(&self) -> Vec<String> {
        self.read_tail().unwrap_or_default()
    }

    fn read_tail(&self) -> io::Result<Vec<String>> {
        let mut file = File::open(&self.path)?;
        let from = file.metadata()?.len().saturating_sub(TAIL_BYTES).max(self.start);
        file.seek(SeekFrom::Start(from))?;
        let mut bytes = Vec::new();
        file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        let last = lines.iter().skip(lines.len().saturating_sub(TAIL_LINES));
        Ok(last
            .map(|line| line.chars().filter(|c| !c.is_control()).take(TAIL_LINE_CHARS).collect())
            .collect())
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn instances_do_not_share_a_file_and_large_ones_are_put_aside() {
        let folder = tempfile::tempdir().unwrap();
        let mut first = Log::open(folder.path(), "a/b:c", 10).unwrap();
        let second = Log::open(folder.path(), "a/b:c", 10).unwrap();
        assert_eq!(first.path().file_name().unwrap(), "a_b_c-0.log");
        assert_eq!(second.path().file_name().unwrap(), "a_b_c-1.log");
        writeln!(first.for_child().unwrap(), "an old story\n\nof two lines").unwrap();
        assert_eq!(first.tail(), ["an old story", "of two lines"]);
        writeln!(first.for_child().unwrap(), "a new one").unwrap();
        assert_eq!(first.tail(), ["a new one"]);
        drop(first);
        let again = Log::open(folder.path(), "a/b:c", 10).unwrap();
        assert_eq!(again.path().file_name().unwrap(), "a_b_c-0.log");
        assert!(again.tail().is_empty());
        assert!(folder.path().join("a_b_c-0.log.old").exists());
    }
}
