//! Routes, limits, and the way from async to blocking.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{ConnectInfo, State};
use axum::http::{HeaderValue, Request as HttpRequest, Response as HttpResponse, StatusCode, header};
use axum::routing::get;
use kiln_controlplane::state::dir::EVENTS;
use tokio::sync::{Semaphore, watch};

use super::api::{Api, Request, Response};
use super::events::{self, Events};
use crate::error::ApiError;

/// Longest body in bytes: user data, a public key or some policies, encoded twice, and room.
const MAX_BODY: usize = 256 << 10;
/// Headers of one request.
const MAX_HEADERS: usize = 64;
/// A client has this long to send a body.
const BODY_PATIENCE: Duration = Duration::from_secs(30);
/// Requests that are worked on at one time; others wait this long for their turn.
const AT_ONCE: usize = 32;
const TURN_PATIENCE: Duration = Duration::from_secs(30);

#[derive(Clone)]
struct Shared {
    api: Arc<Api>,
    turns: Arc<Semaphore>,
}

/// Serves `api`: the Query protocol at `/`, metrics at `/metrics`.
pub fn router(api: Arc<Api>) -> Router {
    let shared = Shared { api, turns: Arc::new(Semaphore::new(AT_ONCE)) };
    Router::new().route("/metrics", get(metrics)).fallback(query).with_state(shared)
}

/// The same for the owner of the installation, with what happens at [`EVENTS`] until `stopped` says true.
/// Events are not signed for, so they are told where only the owner can ask.
pub fn local_router(api: Arc<Api>, stopped: watch::Receiver<bool>) -> Router {
    let events = Events::new(api.supervisor().notices().clone(), stopped);
    router(api).merge(Router::new().route(EVENTS, get(events::follow)).with_state(events))
}

async fn query(State(shared): State<Shared>, request: HttpRequest<Body>) -> HttpResponse<Body> {
    let response = match read(request).await {
        Err(error) => Api::refuse(&error),
        Ok(request) => {
            work(&shared, move |api| api.answer(&request)).await.unwrap_or_else(|e| Api::refuse(&e))
        }
    };
    xml(response)
}

async fn metrics(State(shared): State<Shared>) -> HttpResponse<Body> {
    match work(&shared, |api| api.metrics.text(api.supervisor())).await {
        Ok(Ok(text)) => answer(200, "text/plain; version=0.0.4", text),
        _ => answer(503, "text/plain", "the state database cannot be read\n".to_owned()),
    }
}

/// Runs blocking `job` when its turn comes.
async fn work<T: Send + 'static>(
    shared: &Shared,
    job: impl FnOnce(&Api) -> T + Send + 'static,
) -> Result<T, ApiError> {
    let busy = |_| ApiError::new("Unavailable", "The server is overloaded; try again");
    let turn = tokio::time::timeout(TURN_PATIENCE, Arc::clone(&shared.turns).acquire_owned()).await;
    let turn = turn.map_err(busy)?;
    let api = Arc::clone(&shared.api);
    let done = tokio::task::spawn_blocking(move || {
        let result = job(&api);
        drop(turn);
        result
    });
    done.await.map_err(|e| ApiError::internal(&e))
}

async fn read(request: HttpRequest<Body>) -> Result<Request, ApiError> {
    let (head, body) = request.into_parts();
    let source = head.extensions.get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(peer)| peer.ip());
    let malformed = |message: &str| ApiError::new("MalformedQueryString", message);
    if !matches!(head.method.as_str(), "GET" | "POST") {
        return Err(ApiError::new("InvalidAction", "Requests are GET or POST"));
    }
    if head.uri.path() != "/" {
        return Err(ApiError::new("InvalidAction", "There is nothing but / here"));
    }
    if head.headers.len() > MAX_HEADERS {
        return Err(malformed("The request has too many headers"));
    }
    let mut headers = Vec::new();
    for (name, value) in &head.headers {
        let value = value.to_str().map_err(|_| malformed("The request has a header that is not ASCII"))?;
        headers.push((name.as_str().to_owned(), value.to_owned()));
    }
    let too_large =
        |_| ApiError::new("RequestEntityTooLarge", format!("A request has at most {MAX_BODY} bytes"));
    let body = tokio::time::timeout(BODY_PATIENCE, to_bytes(body, MAX_BODY)).await;
    let body = body.map_err(|_| ApiError::new("RequestTimeout", "The body of the request did not come"))?;
    Ok(Request {
        method: head.method.as_str().to_owned(),
        query: head.uri.query().unwrap_or_default().to_owned(),
        headers,
        body: body.map_err(too_large)?.to_vec(),
        source,
    })
}

fn xml(response: Response) -> HttpResponse<Body> {
    let mut http = answer(response.status, "text/xml;charset=UTF-8", response.body);
    if let Ok(id) = HeaderValue::from_str(&response.request_id) {
        http.headers_mut().insert("x-amzn-requestid", id);
    }
    http
}

pub(super) fn answer(status: u16, kind: &'static str, body: String) -> HttpResponse<Body> {
    let mut http = HttpResponse::new(Body::from(body));
    *http.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    http.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    http
}
