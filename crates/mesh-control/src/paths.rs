//! The endpoints by name, so that client and router cannot drift apart.

/// An endpoint of the control API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// `GET /api/status`
    Status,
    /// `GET /api/nodes`
    Nodes,
    /// `GET` and `POST /api/invites`
    Invites,
    /// `POST /api/revoke`
    Revoke,
    /// `POST /api/recovery/revoke`
    Recover,
    /// `POST /api/admins`
    Admins,
    /// `POST /api/join`
    Join,
    /// `POST /api/leave`
    Leave,
    /// `POST /api/ping`
    Ping,
    /// `GET /api/models`
    Models,
    /// `POST /api/models/load`
    Load,
    /// `POST /api/models/drop`
    Drop,
    /// `POST /api/models/pull`
    Pull,
    /// `POST /api/models/pull/stop`
    StopPull,
    /// `GET /api/models/pulls`
    Pulls,
    /// `POST /api/models/plan`
    Plan,
    /// `GET /api/routes?model=`, and `GET /api/routes?node=`
    Routes,
    /// `GET` and `POST /api/routes/agents`
    AgentRoutes,
    /// `GET /api/audit`
    Audit,
    /// `GET /api/doctor`
    Doctor,
    /// `GET /metrics`
    Metrics,
    /// `GET /api/logs`
    Logs,
    /// `GET /api/logs/events`
    LogEvents,
    /// `POST /api/console/link`
    ConsoleLink,
    /// `POST /api/console/close`
    CloseConsole,
    /// `GET /api/events`
    Events,
    /// `GET /api/agents`
    Agents,
    /// `GET` and `POST /api/sessions`
    Sessions,
    /// `GET /api/sessions/show?session=`
    ShowSession,
    /// `GET /api/sessions/events?session=&after=`
    SessionEvents,
    /// `GET /api/sessions/content?session=&blob=`
    SessionContent,
    /// `POST /api/sessions/prompt`
    Prompt,
    /// `POST /api/sessions/steer`
    Steer,
    /// `POST /api/sessions/cancel`
    Cancel,
    /// `POST /api/sessions/decide`
    Decide,
    /// `POST /api/sessions/name`
    NameSession,
    /// `POST /api/sessions/label`
    LabelSession,
    /// `POST /api/sessions/share`
    ShareSession,
    /// `POST /api/sessions/fork`
    ForkSession,
    /// `POST /api/sessions/suspend`
    Suspend,
    /// `POST /api/sessions/resume`
    Resume,
    /// `POST /api/sessions/archive`
    Archive,
    /// `POST /api/sessions/move`
    MoveSession,
    /// `GET /api/sessions/export?session=`
    ExportSession,
    /// `POST /api/sessions/import`
    ImportSession,
    /// `GET /api/sessions/search?words=`
    SearchSessions,
    /// `GET` and `POST /api/boards`
    Boards,
    /// `GET /api/boards/show?board=`
    ShowBoard,
    /// `POST /api/boards/post`
    PostOnBoard,
}

impl Endpoint {
    /// The path, without a query.
    pub const fn path(self) -> &'static str {
        match self {
            Self::Status => "/api/status",
            Self::Nodes => "/api/nodes",
            Self::Invites => "/api/invites",
            Self::Revoke => "/api/revoke",
            Self::Recover => "/api/recovery/revoke",
            Self::Admins => "/api/admins",
            Self::Join => "/api/join",
            Self::Leave => "/api/leave",
            Self::Ping => "/api/ping",
            Self::Models => "/api/models",
            Self::Load => "/api/models/load",
            Self::Drop => "/api/models/drop",
            Self::Pull => "/api/models/pull",
            Self::StopPull => "/api/models/pull/stop",
            Self::Pulls => "/api/models/pulls",
            Self::Plan => "/api/models/plan",
            Self::Routes => "/api/routes",
            Self::AgentRoutes => "/api/routes/agents",
            Self::Audit => "/api/audit",
            Self::Doctor => "/api/doctor",
            Self::Metrics => "/metrics",
            Self::Logs => "/api/logs",
            Self::LogEvents => "/api/logs/events",
            Self::ConsoleLink => "/api/console/link",
            Self::CloseConsole => "/api/console/close",
            Self::Events => "/api/events",
            Self::Agents => "/api/agents",
            Self::Sessions => "/api/sessions",
            Self::ShowSession => "/api/sessions/show",
            Self::SessionEvents => "/api/sessions/events",
            Self::SessionContent => "/api/sessions/content",
            Self::Prompt => "/api/sessions/prompt",
            Self::Steer => "/api/sessions/steer",
            Self::Cancel => "/api/sessions/cancel",
            Self::Decide => "/api/sessions/decide",
            Self::NameSession => "/api/sessions/name",
            Self::LabelSession => "/api/sessions/label",
            Self::ShareSession => "/api/sessions/share",
            Self::ForkSession => "/api/sessions/fork",
            Self::Suspend => "/api/sessions/suspend",
            Self::Resume => "/api/sessions/resume",
            Self::Archive => "/api/sessions/archive",
            Self::MoveSession => "/api/sessions/move",
            Self::ExportSession => "/api/sessions/export",
            Self::ImportSession => "/api/sessions/import",
            Self::SearchSessions => "/api/sessions/search",
            Self::Boards => "/api/boards",
            Self::ShowBoard => "/api/boards/show",
            Self::PostOnBoard => "/api/boards/post",
        }
    }
}

/// `path?key=value` with the value percent-encoded (all but RFC 3986's unreserved characters); a path that has a query
/// already gets one more.
pub(crate) fn with_query(path: &str, key: &str, value: &str) -> String {
    let mut out = format!("{path}{}{key}=", if path.contains('?') { '&' } else { '?' });
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::with_query;

    #[test]
    fn encodes_what_a_query_cannot_carry() {
        assert_eq!(with_query("/r", "model", "org/a b&c=é~"), "/r?model=org%2Fa%20b%26c%3D%C3%A9~");
        assert_eq!(with_query("/r?a=1", "b", "?"), "/r?a=1&b=%3F");
    }
}
