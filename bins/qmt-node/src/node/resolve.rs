//! Names and prefixes that people type, resolved to nodes and scopes.

use mesh_control::{ApiError, ErrorCode};
use mesh_gossip::Member;
use mesh_identity::{NodeId, ScopeId};

use super::Node;
use super::scopes::Scope;

/// Fewest characters of an id that count as a prefix.
const PREFIX_MIN: usize = 4;

impl Node {
    /// A scope by its name, its id or a unique prefix of its id.
    pub(crate) fn resolve_scope(&self, text: &str) -> Result<Scope, ApiError> {
        let all = self.scopes().list();
        if all.is_empty() {
            return Err(ApiError::new(ErrorCode::UnknownScope, "this node is in no mesh")
                .with_mend("found one with `qmt-cli invite`, or join one with `qmt-cli join TOKEN`"));
        }
        let lower = text.to_lowercase();
        let by_id = |scope: &&Scope| lower.len() >= PREFIX_MIN && scope.id().to_string().starts_with(&lower);
        let named: Vec<&Scope> = all.iter().filter(|scope| scope.name == text).collect();
        let found = if named.is_empty() { all.iter().filter(by_id).collect() } else { named };
        match found.as_slice() {
            [one] => Ok((*one).clone()),
            [] => {
                let names: Vec<&str> = all.iter().map(|scope| scope.name.as_str()).collect();
                Err(ApiError::new(
                    ErrorCode::UnknownScope,
                    format!("this node is in no mesh called {text:?}"),
                )
                .with_mend(format!("it is in: {}", names.join(", "))))
            }
            many => Err(ApiError::new(ErrorCode::Ambiguous, format!("{} meshes fit {text:?}", many.len()))
                .with_mend("give more characters of the id")),
        }
    }

    /// A node by the name its grant carries, its id or a unique prefix of its id, in one scope or in all of them.
    pub(crate) fn resolve_node(
        &self,
        text: &str,
        scope: Option<&str>,
    ) -> Result<(ScopeId, NodeId), ApiError> {
        let scopes = match scope {
            Some(wanted) => vec![self.resolve_scope(wanted)?],
            None => self.scopes().list(),
        };
        let mut named = Vec::new();
        let mut prefixed = Vec::new();
        for scope in &scopes {
            let mut known: Vec<(NodeId, String)> = vec![(self.id(), scope.grant.name.to_string())];
            if let Some(gossip) = self.gossip(&scope.id()) {
                // What a stranger calls itself names nobody.
                let name = |member: &Member| match &scope.uninvited {
                    Some(uninvited) => uninvited.name_of(&member.id).unwrap_or_default().to_owned(),
                    None => member.name.to_string(),
                };
                known.extend(gossip.members().iter().map(|member| (member.id, name(member))));
            }
            for (node, name) in known {
                if name.eq_ignore_ascii_case(text) {
                    named.push((scope.id(), node, name));
                } else if text.len() >= PREFIX_MIN
                    && (node.to_string().starts_with(text) || node.short().starts_with(text))
                {
                    prefixed.push((scope.id(), node, name));
                }
            }
        }
        let found = if named.is_empty() { prefixed } else { named };
        let Some((scope, node, _)) = found.first().cloned() else {
            return Err(ApiError::new(ErrorCode::UnknownNode, format!("no node is called {text:?}"))
                .with_mend("`qmt-cli nodes` lists them"));
        };
        if found.iter().any(|(_, other, _)| *other != node) {
            let names: Vec<String> =
                found.iter().map(|(_, node, name)| format!("{name} ({})", node.short())).collect();
            return Err(ApiError::new(
                ErrorCode::Ambiguous,
                format!("{text:?} fits several nodes: {}", names.join(", ")),
            )
            .with_mend("give more characters of the id"));
        }
        Ok((scope, node))
    }
}
