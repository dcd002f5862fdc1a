//! What a person can do about a node that does not start.

use mesh_inference::gateway::StartError as GatewayError;

use super::{HomeError, StartError};

impl StartError {
    /// The command or step that mends it, as one sentence; none when there is nothing to advise.
    pub fn mend(&self) -> Option<String> {
        match self {
            Self::Home(HomeError::Io { .. }) => Some(
                "check that you own it and that its disk has room, or set QMT_HOME to another folder".into(),
            ),
            Self::Key(error) => Some(error.mend()),
            Self::Gateway(GatewayError::Bind { .. }) => {
                Some("choose another port with --port, or stop the program that has this one".into())
            }
            Self::Console { .. } => {
                Some("choose another port with --console=PORT, or stop the program that has this one".into())
            }
            Self::Store(_) | Self::Sessions(_) => {
                Some("check the rights of QMT_HOME and the free space of its disk".into())
            }
            _ => None,
        }
    }
}
