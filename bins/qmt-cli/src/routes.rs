//! Where requests go, and by which ways nodes are reached: `routes`.

use mesh_control::{Client, ClientError, ErrorCode, PeerRouteView, RouteTarget, RouteView};
use mesh_identity::UnixTime;

use crate::failure::Failure;
use crate::nodes::{path, short};
use crate::screen::Screen;
use crate::table::Table;
use crate::units;

/// The routes of one model or of all; what is no model is taken for a node.
pub(crate) async fn show(client: &Client, screen: &Screen, of: Option<String>) -> Result<(), Failure> {
    let Some(of) = of else { return of_models(client, screen, None).await };
    let unknown = match client.routes(Some(&of)).await {
        Err(ClientError::Api(error)) if error.code == ErrorCode::UnknownModel => error,
        _ => return of_models(client, screen, Some(&of)).await,
    };
    match client.routes_for_peer(&of).await {
        Ok(routes) => screen.show(&routes, |routes| node_listing(routes, UnixTime::now().0)),
        // Neither: the models are the likelier thing to mistype.
        Err(ClientError::Api(error)) if error.code == ErrorCode::UnknownNode => {
            Err(ClientError::Api(unknown).into())
        }
        Err(error) => Err(error.into()),
    }
}

async fn of_models(client: &Client, screen: &Screen, model: Option<&str>) -> Result<(), Failure> {
    let routes = client.routes(model).await?;
    screen.show(&routes, |routes| models_listing(routes))?;
    if routes.is_empty() {
        screen.note(
            "no routes: no node that this one knows serves a model; `qmt-cli load MODEL` serves one here",
        );
    }
    Ok(())
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
