//! How an attempt to run a child ended, in words that say what mends it.

use std::fmt;

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Somebody asked for it.
    Stopped,
    /// The port was taken between choosing and binding it.
    PortTaken,
    /// It ended with a code.
    Exit(i32),
    /// A signal ended it.
    Signal(i32),
    /// It did not answer in time after its start.
    NotReady {
        /// The time it was given.
        seconds: u64,
    },
    /// It was ready, and then no longer answered.
    Hung,
    /// The guard ended before its child, or said nothing of it.
    GuardLost,
    /// The guard could not be started.
    NoGuard(String),
}

impl Outcome {
    /// From the guard's last line.
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let (kind, number) = line.trim().split_once(' ')?;
        match kind {
            "exit" => number.parse().ok().map(Self::Exit),
            "signal" => number.parse().ok().map(Self::Signal),
            _ => None,
        }
    }
}

const SIGILL: i32 = 4;
const SIGABRT: i32 = 6;
const SIGKILL: i32 = 9;

impl Outcome {
    /// The same for a program of any name.
    pub(crate) fn of(&self, program: &str) -> String {
        match self {
            Self::Stopped => "stopped".into(),
            Self::PortTaken => "its port was taken by another program".into(),
            Self::Signal(SIGILL) | Self::Exit(132) => format!(
                "{program} met an illegal instruction: it was built for another processor; \
                 `qmt-cli setup` builds it with GGML_NATIVE=OFF"
            ),
            Self::Signal(SIGKILL) | Self::Exit(137) => format!(
                "{program} was killed: by the system when memory ran out, \
                 or on macOS because it is not signed (`codesign -s - -f`)"
            ),
            Self::Signal(SIGABRT) | Self::Exit(134) => format!("{program} aborted"),
            Self::Signal(signal) => format!("signal {signal} ended {program}"),
            Self::Exit(126) => format!("{program} cannot be executed; `qmt-cli setup` installs it"),
            Self::Exit(code) => format!("{program} ended with exit code {code}"),
            Self::NotReady { seconds } => format!("{program} was not ready within {seconds} s"),
            Self::Hung => format!("{program} no longer answered"),
            Self::GuardLost => "the guard process was killed".into(),
            Self::NoGuard(why) => format!("the guard process did not start: {why}"),
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.of("llama-server"))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn an_illegal_instruction_names_the_mend() {
        for line in ["exit 132", "signal 4\n"] {
            let outcome = Outcome::parse(line).unwrap();
            assert!(outcome.to_string().contains("GGML_NATIVE=OFF"), "{outcome}");
        }
        assert_eq!(Outcome::parse("child 1 2"), None);
        assert_eq!(Outcome::parse("exit x"), None);
    }
}
