//! Which node without a model of its own takes up which.

use std::collections::BTreeMap;

use mesh_identity::NodeId;

use super::AssignWhy;
use super::member::Member;

#[derive(Debug, Clone, Copy, Default)]
struct Wanted {
    nodes: u64,
    requests: u64,
    is_wanted: bool,
}

/// What each idle node without a model of its own takes up. All nodes compute it for all, so that two of them take different
/// ones: idle nodes choose one after the other, by id; each takes of what is on its disk what is needed most.
pub(super) fn assignments<'a>(
    members: impl Iterator<Item = &'a Member> + Clone,
    per_node: u64,
) -> BTreeMap<NodeId, (String, AssignWhy)> {
    let mut wanted = BTreeMap::<&str, Wanted>::new();
    let (mut idle, mut taken) = (Vec::new(), BTreeMap::new());
    for member in members {
        for (model, facts) in &member.models {
            let entry = wanted.entry(model).or_default();
            entry.nodes += u64::from(facts.serves && facts.on_disk);
            entry.requests = entry.requests.saturating_add(facts.requests);
            entry.is_wanted |= facts.is_wanted;
        }
        let is_idle = !member.models.values().any(|facts| facts.serves && facts.on_disk);
        if member.is_auto && is_idle {
            idle.push(member);
        }
    }
    idle.sort_by_key(|member| member.id());
    for member in idle {
        let on_disk = member.models.iter().filter(|(_, facts)| facts.on_disk);
        let needed = on_disk.filter_map(|(model, _)| {
            let wanted = *wanted.get(model.as_str())?;
            Some((need(&wanted, per_node)?, model))
        });
        // Of equals the first by name.
        let Some(((_, why), model)) =
            needed.max_by(|((a, _), left), ((b, _), right)| a.cmp(b).then(right.cmp(left)))
        else {
            continue;
        };
        if let Some(entry) = wanted.get_mut(model.as_str()) {
            entry.nodes += 1;
        }
        taken.insert(member.id(), (model.clone(), why));
    }
    taken
}

/// How much a model needs one more node; `None` when it needs none.
fn need(wanted: &Wanted, per_node: u64) -> Option<((bool, u64), AssignWhy)> {
    let Some(each) = wanted.requests.checked_div(wanted.nodes) else {
        let is_needed = wanted.is_wanted || wanted.requests > 0;
        return is_needed.then_some(((true, wanted.requests), AssignWhy::Unserved));
    };
    let why = AssignWhy::Demand { requests: wanted.requests, nodes: wanted.nodes };
    (each > per_node).then_some(((false, each), why))
}
