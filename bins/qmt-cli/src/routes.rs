//! Where requests go, whose models agents ask, and by which ways nodes are reached: `routes`.

use mesh_control::{
    AgentRouteView, Client, ClientError, ErrorCode, PeerRouteView, RouteTarget, RouteView, SetAgentRoute,
};
use mesh_identity::UnixTime;

use crate::args::{RouteTo, RoutesCommand};
use crate::failure::Failure;
use crate::nodes::{path, short};
use crate::screen::Screen;
use crate::table::Table;
use crate::units;

/// The routes of one model, or of all and of the agents; what is no model is taken for a node, and then for an agent.
pub(crate) async fn show(client: &Client, screen: &Screen, of: Option<String>) -> Result<(), Failure> {
    let Some(of) = of else { return of_all(client, screen).await };
    let unknown = match client.routes(Some(&of)).await {
        Err(ClientError::Api(error)) if error.code == ErrorCode::UnknownModel => error,
        Err(error) => return Err(error.into()),
        Ok(routes) => return screen.show(&routes, |routes| models_listing(routes)),
    };
    match client.routes_for_peer(&of).await {
        Ok(routes) => return screen.show(&routes, |routes| node_listing(routes, UnixTime::now().0)),
        Err(ClientError::Api(error)) if error.code == ErrorCode::UnknownNode => {}
        Err(error) => return Err(error.into()),
    }
    let agents = client.agent_routes().await?;
    match agents.into_iter().find(|route| route.agent == of) {
        Some(route) => screen.show(&[route][..], agents_listing),
        // None of them: the models are the likelier thing to mistype.
        None => Err(ClientError::Api(unknown).into()),
    }
}

/// What `routes` says beyond listing.
pub(crate) async fn agents(client: &Client, screen: &Screen, what: RoutesCommand) -> Result<(), Failure> {
    match what {
        RoutesCommand::Agents => {
            let routes = client.agent_routes().await?;
            screen.show(&routes, |routes| agents_listing(routes))?;
            if routes.is_empty() {
                screen.note("no agents: `[[agents]]` in config.toml makes one");
            }
            Ok(())
        }
        RoutesCommand::Set { agent, to } => set(client, screen, agent, Some(target(to)?)).await,
        RoutesCommand::Unset { agent } => set(client, screen, agent, None).await,
    }
}

async fn set(client: &Client, screen: &Screen, agent: String, to: Option<String>) -> Result<(), Failure> {
    let route = client.set_agent_route(&SetAgentRoute { agent, to }).await?;
    screen.show(&route, |route| {
        let whose = match whom(route) {
            text if route.set => text,
            text => format!("{text}, as the configuration says"),
        };
        crate::screen::harmless(&format!("{} asks {whose}", route.agent))
    })
}

/// The API's word for it.
fn target(to: RouteTo) -> Result<String, Failure> {
    match to.peer {
        // These two are no nodes there.
        Some(peer) if peer == "any" || peer == "local" => {
            let fault = format!("--peer {peer} means no node");
            Err(Failure::usage(fault).with_mend("a node that is called so is named by its id"))
        }
        Some(peer) => Ok(peer),
        None if to.local => Ok("local".to_owned()),
        None => Ok("any".to_owned()),
    }
}

async fn of_all(client: &Client, screen: &Screen) -> Result<(), Failure> {
    let routes = client.routes(None).await?;
    // Scripts get the models' alone; `routes agents` has the others.
    let agents = if screen.is_json() { Vec::new() } else { client.agent_routes().await? };
    screen.show(&routes, |routes| {
        let tables = [models_listing(routes), agents_listing(&agents)];
        tables.into_iter().filter(|table| !table.is_empty()).collect::<Vec<_>>().join("\n")
    })?;
    if routes.is_empty() {
        screen.note(
            "no routes: no node that this one knows serves a model; `qmt-cli load MODEL` serves one here",
        );
    }
    Ok(())
}

/// Whose model is asked, for a reader.
fn whom(route: &AgentRouteView) -> String {
    match (route.to.as_str(), &route.node) {
        ("any", _) => "this node, then its peers".to_owned(),
        ("local", _) => "this node alone".to_owned(),
        (name, None) => format!("{name}, which is no one node now"),
        (name, Some(node)) if name == node => short(node),
        (name, Some(_)) => name.to_owned(),
    }
}

fn agents_listing(routes: &[AgentRouteView]) -> String {
    if routes.is_empty() {
        return String::new();
    }
    let mut table = Table::new(&["AGENT", "MODEL", "ASKS", "FROM"]);
    for route in routes {
        let from = if route.set { "routes set" } else { "configuration" };
        table.row([route.agent.clone(), route.model.clone(), whom(route), from.to_owned()]);
    }
    table.to_string()
}

fn models_listing(routes: &[RouteView]) -> String {
    if routes.is_empty() {
        return String::new();
    }
    let mut table = Table::new(&["MODEL", "RANK", "NODE", "STATE", "PATH", "RTT", "WHY"]);
    for route in routes {
        let target = match &route.target {
            RouteTarget::Local => "this node".to_owned(),
            RouteTarget::Peer { name, node, .. } if name.is_empty() => short(node),
            RouteTarget::Peer { name, .. } => name.clone(),
            RouteTarget::Unknown => "unknown".to_owned(),
        };
        table.row([
            route.model.clone(),
            (route.rank + 1).to_string(),
            target,
            route.state.to_string(),
            path(None, route.path),
            route.rtt_ms.map_or_else(String::new, units::milliseconds),
            route.why.clone(),
        ]);
    }
    table.to_string()
}

fn node_listing(routes: &[PeerRouteView], now: u64) -> String {
    let mut table = Table::new(&["RANK", "MESH", "PATH", "RTT", "LOSS", "SINCE", "WHY"]);
    for (rank, route) in (1..).zip(routes) {
        table.row([
            format!("{rank}"),
            route.scope_name.clone(),
            path(route.transport.as_deref(), route.path),
            route.rtt_ms.map_or_else(String::new, units::milliseconds),
            route.loss_per_mille.map_or_else(String::new, |loss| format!("{}.{} %", loss / 10, loss % 10)),
            route.since.map_or_else(String::new, |since| units::duration(now.saturating_sub(since))),
            route.why.clone(),
        ]);
    }
    let addresses = routes.first().map(|route| route.addresses.join(", ")).unwrap_or_default();
    let known = if addresses.is_empty() { "none".to_owned() } else { addresses };
    format!("{table}\naddresses known: {known}\n")
}
