//! The models that `/v1/models` lists.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::routes::ModelFacts;

/// One entry per model, sorted by name; ready where any of its providers is.
pub(crate) fn merge(facts: impl Iterator<Item = ModelFacts>) -> Vec<ModelFacts> {
    let mut models = BTreeMap::new();
    for ModelFacts { model, ready } in facts {
        *models.entry(model).or_insert(false) |= ready;
    }
    models.into_iter().map(|(model, ready)| ModelFacts { model, ready }).collect()
}

/// The answer to `GET /v1/models`.
pub(crate) fn list(known: &[ModelFacts]) -> Value {
    json!({ "object": "list", "data": known.iter().map(one).collect::<Vec<_>>() })
}

/// The answer to `GET /v1/models/{id}`. `created` is unknown to a mesh and a field that clients require.
pub(crate) fn one(known: &ModelFacts) -> Value {
    json!({ "id": known.model, "object": "model", "created": 0, "owned_by": "mesh", "ready": known.ready })
}
