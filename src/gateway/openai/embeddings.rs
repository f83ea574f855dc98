//! `/v1/embeddings`

use axum::{
    body::Body,
    extract::{Request, State},
    http::{Response, StatusCode},
    response::IntoResponse,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use memcube_actors::embedder::Priority;
use memcube_schemas::{
    api::{
        openai::{EmbeddingBody, EmbeddingsBody, EmbeddingsResponse, EmbeddingsUsage},
        v1::Problem,
    },
    limits::{EMBEDDINGS_TEXTS_MAX, QUERY_BYTES_MAX},
};
use serde_json::Value;

use super::models;
use crate::gateway::{
    Gateway,
    errors::Failure,
    request::{Caller, RequestId, read_json},
};

/// Embeds texts with the model of this node.
#[utoipa::path(post, path = "/v1/embeddings", tag = "openai", request_body = EmbeddingsBody,
    responses((status = 200, body = EmbeddingsResponse),
        (status = 400, body = Problem),
        (status = 404, body = Problem, description = "there is no such model"),
        (status = 429, body = Problem),
        (status = 503, body = Problem, description = "there is no embedding model, or it fails")))]
pub(crate) async fn embed(
    State(gateway): State<Gateway>,
    Caller(_caller): Caller,
    id: RequestId,
    request: Request,
) -> Response<Body> {
    match embedded(&gateway, request).await {
        Ok(body) => axum::Json(body).into_response(),
        Err(failure) => failure.into_openai(&id),
    }
}

async fn embedded(gateway: &Gateway, request: Request) -> Result<EmbeddingsResponse, Failure> {
    let body: EmbeddingsBody = read_json(request).await?;
    let texts = texts(body.input)?;
    let form = Form::of(body.encoding_format.as_deref())?;
    let Some(embedder) = gateway.node.cubes().embedder() else {
        let detail = "this server has no embedding model; fetch one with `make model` and start \
                      the server with `--embedder minilm`";
        return Err(Failure::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", detail));
    };
    let model = embedder.model().to_string();
    models::check(body.model.as_deref(), &model)?;
    // A single text is a question that somebody waits for.
    let priority = if texts.len() == 1 { Priority::Query } else { Priority::Bulk };
    let embeddings = embedder.embed(texts, priority).await?;
    let tokens = embeddings.iter().map(|embedding| u64::from(embedding.tokens)).sum();
    let mut data = Vec::with_capacity(embeddings.len());
    for (index, embedding) in embeddings.into_iter().enumerate() {
        let vector = cut(embedding.vector, body.dimensions)?;
        data.push(EmbeddingBody {
            object: "embedding".to_owned(),
            index,
            embedding: form.write(&vector),
        });
    }
    let usage = EmbeddingsUsage { prompt_tokens: tokens, total_tokens: tokens };
    Ok(EmbeddingsResponse { object: "list".to_owned(), data, model, usage })
}

fn texts(input: Value) -> Result<Vec<String>, Failure> {
    let refuse = |why: String| Failure::invalid(format!("`input` {why}")).about("input");
    let texts = match input {
        Value::String(text) => vec![text],
        Value::Array(entries) => {
            let text = |entry: Value| match entry {
                Value::String(text) => Ok(text),
                Value::Number(_) | Value::Array(_) => Err(refuse(
                    "is of tokens, which belong to another model; send texts".to_owned(),
                )),
                Value::Null | Value::Bool(_) | Value::Object(_) => {
                    Err(refuse("must be a text or a list of texts".to_owned()))
                }
            };
            entries.into_iter().map(text).collect::<Result<Vec<String>, Failure>>()?
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => {
            return Err(refuse("must be a text or a list of texts".to_owned()));
        }
    };
    if texts.is_empty() || texts.len() > EMBEDDINGS_TEXTS_MAX {
        let count = texts.len();
        return Err(refuse(format!("has {count} texts; send 1 to {EMBEDDINGS_TEXTS_MAX}")));
    }
    for (at, text) in texts.iter().enumerate() {
        if text.is_empty() || text.len() > QUERY_BYTES_MAX {
            let bytes = text.len();
            return Err(refuse(format!(
                "has a text with {bytes} bytes at {at}; each must have 1 to {QUERY_BYTES_MAX}"
            )));
        }
    }
    Ok(texts)
}

/// How vectors are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Float,
    Base64,
}

impl Form {
    fn of(name: Option<&str>) -> Result<Self, Failure> {
        match name {
            None | Some("float") => Ok(Self::Float),
            Some("base64") => Ok(Self::Base64),
            Some(other) => Err(Failure::invalid(format!(
                "`encoding_format` is `{other}`; it must be `float` or `base64`"
            ))
            .about("encoding_format")),
        }
    }

    fn write(self, vector: &[f32]) -> Value {
        match self {
            Self::Float => Value::from(vector.to_vec()),
            Self::Base64 => {
                let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
                Value::from(STANDARD.encode(bytes))
            }
        }
    }
}

/// The first numbers of a vector, scaled to unit length again.
fn cut(mut vector: Vec<f32>, dimensions: Option<usize>) -> Result<Vec<f32>, Failure> {
    let Some(dimensions) = dimensions else { return Ok(vector) };
    if dimensions == 0 || dimensions > vector.len() {
        let detail = format!("`dimensions` must be between 1 and {}", vector.len());
        return Err(Failure::invalid(detail).about("dimensions"));
    }
    if dimensions < vector.len() {
        vector.truncate(dimensions);
        let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
        if length > 0.0 {
            vector.iter_mut().for_each(|x| *x /= length);
        }
    }
    Ok(vector)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn texts_are_taken_and_tokens_are_not() {
        for (input, expected) in [
            (json!("a"), Ok(vec!["a"])),
            (json!(["a", "b"]), Ok(vec!["a", "b"])),
            (json!([1, 2]), Err("of tokens")),
            (json!([[1, 2]]), Err("of tokens")),
            (json!([]), Err("has 0 texts")),
            (json!(""), Err("0 bytes at 0")),
            (json!(["a", ""]), Err("0 bytes at 1")),
            (json!(null), Err("a list of texts")),
            (json!([{}]), Err("a list of texts")),
            (json!(vec!["a"; EMBEDDINGS_TEXTS_MAX + 1]), Err("send 1 to 2048")),
        ] {
            match (texts(input), expected) {
                (Ok(read), Ok(expected)) => assert_eq!(read, expected),
                (Err(failure), Err(part)) => {
                    assert!(failure.detail.contains(part), "{}", failure.detail);
                }
                (read, expected) => panic!("{read:?} and not {expected:?}"),
            }
        }
    }

    #[test]
    fn a_shorter_vector_has_unit_length() {
        assert_eq!(cut(vec![3.0, 4.0, 12.0], Some(2)).expect("cut"), [0.6, 0.8]);
        assert_eq!(cut(vec![0.0, 0.0, 1.0], Some(2)).expect("cut"), [0.0, 0.0]);
        assert_eq!(cut(vec![0.6, 0.8], Some(2)).expect("whole"), [0.6, 0.8]);
        assert!(cut(vec![0.6, 0.8], Some(3)).is_err() && cut(vec![1.0], Some(0)).is_err());
    }

    #[test]
    fn vectors_are_written_as_numbers_or_bytes() {
        let vector = [1.0, -0.5];
        assert_eq!(Form::Float.write(&vector), json!([1.0, -0.5]));
        assert_eq!(Form::Base64.write(&vector), json!("AACAPwAAAL8="));
        assert_eq!(Form::of(Some("base64")).expect("known"), Form::Base64);
        assert!(Form::of(Some("hex")).is_err());
    }
}
