//! A blocking client of `/v1`, for the commands.

use std::{fmt, io::Read, thread, time::Duration};

use memcube_schemas::{
    MemoryId, NodeId,
    api::{
        openai::ChatCompletionBody,
        v1::{
            AddMemoriesRequest, AddMemoriesResponse, BackupBody, CreateCubeRequest, CubeBody,
            HandOverRequest, HandOverResponse, HealthResponse, JobsResponse, ListCubesResponse,
            ListMemoriesResponse, ListNodesResponse, MemoryBody, PauseJobsRequest, Problem,
            ReadyResponse, SearchBody, SearchResponse, TenantSearchBody, TenantSearchResponse,
            VectorsResponse,
        },
    },
};
use serde::{Serialize, de::DeserializeOwned};
use ureq::{
    Agent,
    http::{Method, Request},
};

/// How often a request is sent again when the server asks for patience.
const RETRIES_MAX: u32 = 6;
/// Milliseconds before the first further try; they double with each one.
const BACK_OFF_MS: u64 = 50;
const BACK_OFF_MS_MAX: u64 = 5_000;
const CONNECT_SECONDS_MAX: u64 = 10;
/// An add of thousands of messages embeds them all before it answers.
const CALL_SECONDS_MAX: u64 = 600;
/// Whether a server is there must be known at once.
const HEALTH_SECONDS_MAX: u64 = 3;
/// A stream gives a sign of life every 15 seconds.
const SILENCE_SECONDS_MAX: u64 = 45;
/// A page of 1,000 memories of 16 KB with their sources fits.
const ANSWER_BYTES_MAX: u64 = 256 << 20;
/// Characters of an answer that is no problem+json that an error shows.
const SHOWN_CHARS_MAX: usize = 200;

const UNAUTHORIZED: &str =
    "the server does not know this API key; pass another with `--api-key` or `MEMCUBE_API_KEY`";

/// Why a call failed.
#[derive(Debug)]
pub(crate) enum ClientError {
    /// The server refused, and says why.
    Problem(Box<Problem>),
    /// Nobody answered.
    Unreachable { address: String, reason: String },
    /// The answer is none of memcube's.
    Strange { address: String, status: u16, answer: String },
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Problem(problem) => {
                let Problem { detail, code, request_id, status, .. } = &**problem;
                // The server speaks of headers, which nobody types here.
                let detail = if *status == 401 { UNAUTHORIZED } else { detail };
                write!(f, "{detail} ({code}, request {request_id})")
            }
            Self::Unreachable { address, reason } => write!(
                f,
                "no answer from `{address}`: {reason}; start a server with `memcube serve`, or \
                 check `--server`"
            ),
            Self::Strange { address, status, answer } => write!(
                f,
                "`{address}` answered with status {status} and not as memcube does: {answer}; \
                 check `--server`"
            ),
        }
    }
}

impl std::error::Error for ClientError {}

impl ClientError {
    /// Whether the server says that the thing is not there.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Self::Problem(problem) if problem.code == "not_found")
    }

    fn is_conflict(&self) -> bool {
        matches!(self, Self::Problem(problem) if problem.code == "conflict")
    }

    /// What the server asks to wait, if it asks for another try.
    fn retry_after_ms(&self) -> Option<u64> {
        match self {
            Self::Problem(problem) if matches!(problem.status, 429 | 503) => problem.retry_after_ms,
            Self::Problem(_) | Self::Unreachable { .. } | Self::Strange { .. } => None,
        }
    }
}

type Result<T> = std::result::Result<T, ClientError>;

/// One server, with a key.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    agent: Agent,
    address: String,
    authorization: String,
}

/// One request.
struct Call<'a> {
    method: Method,
    path: &'a str,
    /// JSON, or nothing.
    body: Vec<u8>,
    idempotency_key: Option<&'a str>,
}

impl Client {
    pub(crate) fn new(address: &str, api_key: &str) -> Self {
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(Duration::from_secs(CONNECT_SECONDS_MAX)))
            .timeout_global(Some(Duration::from_secs(CALL_SECONDS_MAX)));
        if is_loopback(address) {
            // A proxy from the environment cannot reach this machine's own addresses.
            config = config.proxy(None);
        }
        Self {
            agent: Agent::new_with_config(config.build()),
            address: address.trim_end_matches('/').to_owned(),
            authorization: format!("Bearer {api_key}"),
        }
    }

    /// Whether a memcube answers there.
    pub(crate) fn is_memcube(address: &str) -> bool {
        let mut client = Self::new(address, "none");
        let short = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(Duration::from_secs(HEALTH_SECONDS_MAX)))
            .proxy(None);
        client.agent = Agent::new_with_config(short.build());
        let health: Result<HealthResponse> = client.get("/healthz");
        health.is_ok_and(|health| health.service == "memcube")
    }

    /// Whether the server can serve, part by part.
    pub(crate) fn ready(&self) -> Result<ReadyResponse> {
        let call = Call::new(Method::GET, "/readyz");
        let (_, answer) = self.exchange(&call)?;
        self.parse(200, &answer)
    }

    /// Makes a cube.
    pub(crate) fn create_cube(&self, request: &CreateCubeRequest) -> Result<CubeBody> {
        self.post("/v1/cubes", request, None)
    }

    /// Makes a cube unless it is there.
    pub(crate) fn ensure_cube(&self, request: &CreateCubeRequest) -> Result<()> {
        match self.create_cube(request) {
            Err(error) if !error.is_conflict() => Err(error),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    pub(crate) fn cube(&self, cube: &str) -> Result<CubeBody> {
        self.get(&format!("/v1/cubes/{}", encoded(cube)))
    }

    /// All cubes, page by page.
    pub(crate) fn cubes(&self) -> Result<Vec<CubeBody>> {
        let mut cubes = Vec::new();
        let mut path = "/v1/cubes?limit=1000".to_owned();
        loop {
            let page: ListCubesResponse = self.get(&path)?;
            cubes.extend(page.cubes);
            let Some(cursor) = page.next_cursor else { return Ok(cubes) };
            path = format!("/v1/cubes?limit=1000&cursor={}", encoded(&cursor));
        }
    }

    pub(crate) fn delete_cube(&self, cube: &str) -> Result<CubeBody> {
        self.call(&Call::new(Method::DELETE, &format!("/v1/cubes/{}", encoded(cube))))
    }

    /// Lets a cube out of quarantine.
    pub(crate) fn release_cube(&self, cube: &str) -> Result<CubeBody> {
        self.call(&Call::new(Method::POST, &format!("/v1/cubes/{}/release", encoded(cube))))
    }

    /// All nodes of the installation.
    pub(crate) fn nodes(&self) -> Result<ListNodesResponse> {
        self.get("/v1/nodes")
    }

    /// The caller's background jobs.
    pub(crate) fn jobs(&self) -> Result<JobsResponse> {
        self.get("/v1/jobs")
    }

    pub(crate) fn pause_jobs(&self, kind: Option<&str>) -> Result<JobsResponse> {
        let kind = kind.map(str::to_owned);
        self.post("/v1/jobs/pause", &PauseJobsRequest { kind }, None)
    }

    pub(crate) fn resume_jobs(&self, kind: Option<&str>) -> Result<JobsResponse> {
        let kind = kind.map(str::to_owned);
        self.post("/v1/jobs/resume", &PauseJobsRequest { kind }, None)
    }

    /// Moves a cube to another node.
    pub(crate) fn hand_over(&self, cube: &str, to: &NodeId) -> Result<HandOverResponse> {
        let path = format!("/v1/cubes/{}/hand-over", encoded(cube));
        self.post(&path, &HandOverRequest { node: to.clone() }, None)
    }

    /// Remembers. With the key, a retry has no second effect.
    pub(crate) fn add(
        &self,
        cube: &str,
        request: &AddMemoriesRequest,
        idempotency_key: &str,
    ) -> Result<AddMemoriesResponse> {
        self.post(&memories_path(cube), request, Some(idempotency_key))
    }

    /// One page of memories, after a cursor.
    pub(crate) fn memories(
        &self,
        cube: &str,
        cursor: Option<&str>,
        limit: usize,
    ) -> Result<ListMemoriesResponse> {
        let mut path = format!("{}?limit={limit}", memories_path(cube));
        if let Some(cursor) = cursor {
            path = format!("{path}&cursor={}", encoded(cursor));
        }
        self.get(&path)
    }

    /// One memory.
    pub(crate) fn memory(&self, cube: &str, id: MemoryId) -> Result<MemoryBody> {
        self.get(&format!("{}/{id}", memories_path(cube)))
    }

    pub(crate) fn search(&self, cube: &str, request: &SearchBody) -> Result<SearchResponse> {
        self.post(&format!("/v1/cubes/{}/search", encoded(cube)), request, None)
    }

    /// Takes a backup. The answer is a stream, which takes as long as the backup does.
    pub(crate) fn back_up(&self, request: &BackupBody) -> Result<impl Read + use<>> {
        self.post_stream("/v1/backups", self.json_of(request)?)
    }

    /// Begins a chat. The answer is a stream of events.
    pub(crate) fn chat(&self, request: &ChatCompletionBody) -> Result<impl Read + use<>> {
        self.post_stream("/v1/chat/completions", self.json_of(request)?)
    }

    fn json_of(&self, body: &impl Serialize) -> Result<Vec<u8>> {
        serde_json::to_vec(body)
            .map_err(|error| self.unreachable(format!("the request has no JSON form: {error}")))
    }

    fn post_stream(&self, path: &str, body: Vec<u8>) -> Result<impl Read + use<>> {
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(Duration::from_secs(CONNECT_SECONDS_MAX)))
            .timeout_recv_response(Some(Duration::from_secs(CALL_SECONDS_MAX)));
        if is_loopback(&self.address) {
            config = config.proxy(None);
        }
        let agent = Agent::new_with_config(config.build());
        let request = Request::builder()
            .method(Method::POST)
            .uri(format!("{}{path}", self.address))
            .header("authorization", &self.authorization)
            .header("content-type", "application/json");
        let request = request.body(body).map_err(|error| self.unreachable(error.to_string()))?;
        let mut response =
            agent.run(request).map_err(|error| self.unreachable(error.to_string()))?;
        let status = response.status().as_u16();
        if status == 200 {
            return Ok(response.into_body().into_with_config().limit(u64::MAX).reader());
        }
        let body = response.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_vec();
        let answer = body.map_err(|error| self.unreachable(error.to_string()))?;
        Err(self.refusal(status, &answer))
    }

    pub(crate) fn search_all(&self, request: &TenantSearchBody) -> Result<TenantSearchResponse> {
        self.post("/v1/search", request, None)
    }

    pub(crate) fn vectors(&self) -> Result<VectorsResponse> {
        self.get("/v1/vectors")
    }

    pub(crate) fn rebuild_vectors(&self) -> Result<VectorsResponse> {
        self.post("/v1/vectors/rebuild", &(), None)
    }

    /// Opens a stream of events. It ends with an error when nothing was heard for long, not even a
    /// sign of life.
    pub(crate) fn stream(&self, path: &str, cursor: Option<&str>) -> Result<impl Read + use<>> {
        let mut request = Request::builder()
            .uri(format!("{}{path}", self.address))
            .header("authorization", &self.authorization)
            .header("accept", "text/event-stream");
        if let Some(cursor) = cursor {
            request = request.header("last-event-id", cursor);
        }
        let request = request.body(()).map_err(|error| self.unreachable(error.to_string()))?;
        let config = self.agent.configure_request(request).timeout_global(None);
        let silence = Duration::from_secs(SILENCE_SECONDS_MAX);
        let request = config.timeout_per_read(Some(silence)).build();
        let failed = |error: ureq::Error| self.unreachable(error.to_string());
        let mut response = self.agent.run(request).map_err(failed)?;
        let status = response.status().as_u16();
        if status == 200 {
            return Ok(response.into_body().into_reader());
        }
        let answer = response.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_vec();
        Err(self.refusal(status, &answer.map_err(failed)?))
    }

    pub(super) fn get<R: DeserializeOwned>(&self, path: &str) -> Result<R> {
        self.call(&Call::new(Method::GET, path))
    }

    fn post<R: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
        idempotency_key: Option<&str>,
    ) -> Result<R> {
        let body = self.json_of(body)?;
        self.call(&Call { method: Method::POST, path, body, idempotency_key })
    }

    /// Sends a request, and again when the server asks for patience.
    fn call<R: DeserializeOwned>(&self, call: &Call<'_>) -> Result<R> {
        let mut tries = 0;
        loop {
            let error = match self.once(call) {
                Ok((status, answer)) => return self.parse(status, &answer),
                Err(error) => error,
            };
            match error.retry_after_ms() {
                Some(asked_ms) if tries < RETRIES_MAX => {
                    let wait_ms = asked_ms.max(BACK_OFF_MS << tries).min(BACK_OFF_MS_MAX);
                    thread::sleep(Duration::from_millis(wait_ms));
                    tries += 1;
                }
                Some(_) | None => return Err(error),
            }
        }
    }

    fn once(&self, call: &Call<'_>) -> Result<(u16, Vec<u8>)> {
        let (status, answer) = self.exchange(call)?;
        if (200..300).contains(&status) {
            return Ok((status, answer));
        }
        Err(self.refusal(status, &answer))
    }

    /// What an answer says that is no success.
    fn refusal(&self, status: u16, answer: &[u8]) -> ClientError {
        match serde_json::from_slice(answer) {
            Ok(problem) => ClientError::Problem(Box::new(problem)),
            Err(_) => self.strange(status, answer),
        }
    }

    fn exchange(&self, call: &Call<'_>) -> Result<(u16, Vec<u8>)> {
        let mut request = Request::builder()
            .method(call.method.clone())
            .uri(format!("{}{}", self.address, call.path))
            .header("authorization", &self.authorization);
        if let Some(key) = call.idempotency_key {
            request = request.header("idempotency-key", key);
        }
        let refused = |error: ureq::http::Error| self.unreachable(error.to_string());
        let failed = |error: ureq::Error| self.unreachable(error.to_string());
        let mut response = if call.method == Method::POST {
            let request = request.header("content-type", "application/json");
            self.agent.run(request.body(call.body.clone()).map_err(refused)?).map_err(failed)?
        } else {
            self.agent.run(request.body(()).map_err(refused)?).map_err(failed)?
        };
        let status = response.status().as_u16();
        let body = response.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_vec();
        Ok((status, body.map_err(failed)?))
    }

    fn parse<R: DeserializeOwned>(&self, status: u16, answer: &[u8]) -> Result<R> {
        serde_json::from_slice(answer).map_err(|_| self.strange(status, answer))
    }

    fn unreachable(&self, reason: String) -> ClientError {
        ClientError::Unreachable { address: self.address.clone(), reason }
    }

    fn strange(&self, status: u16, answer: &[u8]) -> ClientError {
        let answer = String::from_utf8_lossy(answer);
        let answer = answer.split_whitespace().collect::<Vec<&str>>().join(" ");
        let mut answer: String = answer.chars().take(SHOWN_CHARS_MAX).collect();
        if answer.is_empty() {
            "nothing".clone_into(&mut answer);
        }
        ClientError::Strange { address: self.address.clone(), status, answer }
    }
}

impl<'a> Call<'a> {
    const fn new(method: Method, path: &'a str) -> Self {
        Self { method, path, body: Vec::new(), idempotency_key: None }
    }
}

fn memories_path(cube: &str) -> String {
    format!("/v1/cubes/{}/memories", encoded(cube))
}

fn is_loopback(address: &str) -> bool {
    let host = address.split_once("://").map_or(address, |(_, rest)| rest);
    ["127.", "localhost", "[::1]"].iter().any(|loopback| host.starts_with(loopback))
}

/// A text as one segment of a path or one value of a query (RFC 3986, section 2.1).
pub(super) fn encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'~') {
            encoded.push(char::from(byte));
        } else {
            // Also the full stop: `.` and `..` alone would be taken for steps in the path.
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_cube_id_makes_one_segment_of_a_path() {
        for (id, segment) in
            [("me", "me"), ("a/b", "a%2Fb"), ("..", "%2E%2E"), ("ö ?#", "%C3%B6%20%3F%23")]
        {
            assert_eq!(encoded(id), segment);
        }
    }

    #[test]
    fn only_patience_is_answered_with_a_retry() {
        let problem = |status, retry_after_ms| {
            ClientError::Problem(Box::new(Problem {
                r#type: "about:blank#x".to_owned(),
                title: String::new(),
                status,
                code: "x".to_owned(),
                detail: "it is so".to_owned(),
                request_id: "7".to_owned(),
                retry_after_ms,
                error: None,
            }))
        };
        assert_eq!(problem(429, Some(50)).retry_after_ms(), Some(50));
        assert_eq!(problem(503, Some(1_000)).retry_after_ms(), Some(1_000));
        assert_eq!(problem(503, None).retry_after_ms(), None);
        assert_eq!(problem(500, Some(1)).retry_after_ms(), None);
        assert_eq!(problem(404, None).to_string(), "it is so (x, request 7)");
    }

    #[test]
    fn a_port_where_nobody_listens_is_told_at_once() {
        let error = Client::new("http://127.0.0.1:1", "k").cube("me").expect_err("nobody is there");
        assert!(error.to_string().contains("memcube serve"), "{error}");
        assert!(!Client::is_memcube("http://127.0.0.1:1"));
    }
}
