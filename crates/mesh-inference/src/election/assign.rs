//! Which node without a model of its own takes up which.

use std::collections::BTreeMap;

use mesh_identity::NodeId;

use super::AssignWhy;
use super::member::Member;

/// What a node is to take up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Assignment {
    pub(super) model: String,
    /// What it took up before and leaves for that.
    pub(super) instead_of: Option<String>,
    pub(super) why: AssignWhy,
}

#[derive(Debug, Clone, Copy, Default)]
struct Wanted {
    /// That run it, or would as soon as the rules say so.
    nodes: u64,
    requests: u64,
    is_wanted: bool,
}

impl Wanted {
    fn without_one(self) -> Self {
        Self { nodes: self.nodes.saturating_sub(1), ..self }
    }
}

/// What each node without a model of its own takes up. All nodes compute it for all, so that two of them take different ones:
/// idle nodes choose one after the other, by id; each takes of what is on its disk what is needed most. Then those that took up
/// what another one serves too, because neither knew of the other, leave it for what nobody serves: the highest id first.
pub(super) fn assignments<'a>(
    members: impl Iterator<Item = &'a Member> + Clone,
    per_node: u64,
) -> BTreeMap<NodeId, Assignment> {
    let mut wanted = BTreeMap::<&str, Wanted>::new();
    for member in members.clone() {
        for (model, facts) in &member.models {
            let entry = wanted.entry(model).or_default();
            entry.nodes += u64::from(member.stands_for(model));
            entry.requests = entry.requests.saturating_add(facts.requests);
            entry.is_wanted |= facts.is_wanted;
        }
    }
    let mut auto: Vec<&Member> = members.filter(|member| member.is_auto).collect();
    auto.sort_by_key(|member| member.id());
    let mut taken = BTreeMap::new();
    for member in auto.iter().filter(|member| member.served().next().is_none()) {
        let Some((model, why)) = neediest(member, &wanted, per_node) else { continue };
        note(&mut wanted, &model, 1);
        taken.insert(member.id(), Assignment { model, instead_of: None, why });
    }
    for member in auto.iter().rev() {
        let Some(held) = member.taken_up() else { continue };
        let all = wanted.get(held).copied().unwrap_or_default();
        let rest = if member.stands_for(held) { all.without_one() } else { all };
        if need(&rest, per_node).is_some() {
            continue;
        }
        let Some((model, AssignWhy::Unserved)) = neediest(member, &wanted, per_node) else { continue };
        wanted.insert(held, rest);
        note(&mut wanted, &model, 1);
        let instead_of = Some(held.to_owned());
        taken.insert(member.id(), Assignment { model, instead_of, why: AssignWhy::Unserved });
    }
    taken
}

fn note(wanted: &mut BTreeMap<&str, Wanted>, model: &str, nodes: u64) {
    if let Some(entry) = wanted.get_mut(model) {
        entry.nodes += nodes;
    }
}

/// Of what is on a member's disk and not served there what is needed most; of equals the first by name.
fn neediest(member: &Member, wanted: &BTreeMap<&str, Wanted>, per_node: u64) -> Option<(String, AssignWhy)> {
    let on_disk = member.models.iter().filter(|(_, facts)| facts.on_disk && !facts.serves);
    let needed = on_disk.filter_map(|(model, _)| Some((need(wanted.get(model.as_str())?, per_node)?, model)));
    let most = needed.max_by(|((a, _), left), ((b, _), right)| a.cmp(b).then(right.cmp(left)));
    most.map(|((_, why), model)| (model.clone(), why))
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
