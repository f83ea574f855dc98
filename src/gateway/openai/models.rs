//! `/v1/models`

use axum::{
    body::Body,
    extract::{Path, State},
    http::{Response, StatusCode},
};
use memcube_schemas::{
    ModelId,
    api::{
        openai::{ModelBody, ModelFacts, ModelsResponse},
        v1::Problem,
    },
};

use crate::gateway::{
    Gateway,
    errors::Failure,
    http::respond,
    request::{Caller, RequestId},
};

/// Lists the models of this node: the one that answers, and the one that embeds.
#[utoipa::path(get, path = "/v1/models", tag = "openai",
    responses((status = 200, body = ModelsResponse)))]
pub(crate) async fn list(
    State(gateway): State<Gateway>,
    Caller(_caller): Caller,
    id: RequestId,
) -> Response<Body> {
    let models = ModelsResponse { object: "list".to_owned(), data: models(&gateway) };
    respond(&id, StatusCode::OK, Ok(models))
}

/// Describes one model.
#[utoipa::path(get, path = "/v1/models/{model}", tag = "openai",
    params(("model" = String, Path)),
    responses((status = 200, body = ModelBody), (status = 404, body = Problem)))]
pub(crate) async fn read(
    State(gateway): State<Gateway>,
    Caller(_caller): Caller,
    id: RequestId,
    Path(model): Path<String>,
) -> Response<Body> {
    let models = models(&gateway);
    match models.into_iter().find(|known| is_named(&model, &known.id)) {
        Some(known) => respond(&id, StatusCode::OK, Ok(known)),
        None => {
            let detail = format!("there is no model `{model}`; `GET /v1/models` lists them");
            missing(detail).into_openai(&id)
        }
    }
}

fn models(gateway: &Gateway) -> Vec<ModelBody> {
    let cubes = gateway.node.cubes();
    let body = |model: &ModelId, kind: &str, window_tokens: Option<usize>| ModelBody {
        id: model.to_string(),
        object: "model".to_owned(),
        created: gateway.since,
        owned_by: "memcube".to_owned(),
        memcube: ModelFacts { kind: kind.to_owned(), window_tokens },
    };
    let language = cubes.inference().map(|inference| {
        let facts = inference.facts();
        body(&facts.fingerprint.model, "language", Some(facts.window_tokens))
    });
    let embedding = cubes.embedder().map(|embedder| body(embedder.model(), "embedding", None));
    language.into_iter().chain(embedding).collect()
}

/// Refuses a request for another model than the one that there is.
pub(crate) fn check(wanted: Option<&str>, known: &str) -> Result<(), Failure> {
    match wanted {
        Some(wanted) if !is_named(wanted, known) => Err(missing(format!(
            "there is no model `{wanted}` for this; send `{known}`, or leave `model` out"
        ))),
        Some(_) | None => Ok(()),
    }
}

/// Whether a model is meant, with or without the part of its checksum.
fn is_named(wanted: &str, known: &str) -> bool {
    wanted == known || known.rsplit_once('@').is_some_and(|(name, _)| name == wanted)
}

fn missing(detail: String) -> Failure {
    Failure::new(StatusCode::NOT_FOUND, "model_not_found", detail).about("model")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_known_with_and_without_its_checksum() {
        let known = "smollm2-135m-instruct@d2d5ee36";
        for (wanted, is_known) in [
            (None, true),
            (Some(known), true),
            (Some("smollm2-135m-instruct"), true),
            (Some("smollm2-135m-instruct@00000000"), false),
            (Some("smollm2"), false),
            (Some("gpt-4o"), false),
            (Some(""), false),
        ] {
            assert_eq!(check(wanted, known).is_ok(), is_known, "{wanted:?}");
        }
    }
}
