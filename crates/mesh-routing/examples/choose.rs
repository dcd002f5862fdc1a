//! Which of three machines answers, and what happens when one fails: `cargo run --example choose`.

use std::time::{Duration, Instant};

use mesh_identity::{NodeKey, NodeName, Role, ScopeId};
use mesh_routing::{Config, FallbackChain, LinkFacts, Network, Offer, Outcome, PeerFacts, Query, Router};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let scope = ScopeId::lan(None);
    let mut now = Instant::now();
    let router = Router::new(Config::default(), now);
    for (name, relayed) in [("desktop", false), ("laptop", false), ("cloud", true)] {
        let mut facts = PeerFacts::new(NodeName::new(name)?);
        facts.link = Some(LinkFacts {
            relayed,
            network: Network::Lan,
            rtt: Some(Duration::from_millis(1)),
            loss: None,
        });
        facts.offers.push(Offer::ready("qwen3-8b"));
        router.update(|table| {
            table.set_scope(scope, Role::Member);
            table.set_peer(scope, NodeKey::generate().node_id(), facts);
        });
    }
    let query = Query::new("qwen3-8b", vec![scope]);
    for draw in 0..6 {
        let route = router.route(&query, draw, now)?;
        println!("{}: {}", route.target, route.why);
        for target in FallbackChain::new(&route, true) {
            let request = router.begin(&target, &query.model, now);
            // The first answers late, and then no more: its fallback is taken, and soon it is not even asked.
            let ok = draw == 0 || target != route.target;
            now += Duration::from_millis(100);
            request.observe(Outcome { latency: Duration::from_millis(100), ok }, now);
            println!("  {target} {}", if ok { "answered" } else { "failed" });
            if ok {
                break;
            }
        }
    }
    Ok(())
}
