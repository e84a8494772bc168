//! Routes, limits, and the way from async to blocking.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{ConnectInfo, State};
use axum::http::{
    HeaderName, HeaderValue, Request as HttpRequest, Response as HttpResponse, StatusCode, header,
};
use axum::routing::{any, get};
use kiln_controlplane::state::dir::EVENTS;
use tokio::sync::{Semaphore, watch};

use super::api::{Api, Request, Response};
use super::events::{self, Events};
use crate::error::ApiError;
use crate::rest::Written;
use crate::schema::{EBS, EC2, Service};

/// Longest body in bytes: user data, a public key or some policies, encoded twice, and room.
const MAX_BODY: usize = 256 << 10;
/// The same where it may be a block of a snapshot.
const MAX_BLOCK: usize = 512 << 10;
/// Headers of one request.
const MAX_HEADERS: usize = 64;
/// A client has this long to send a body.
const BODY_PATIENCE: Duration = Duration::from_secs(30);
/// Requests that are worked on at one time; others wait this long for their turn.
const AT_ONCE: usize = 32;
/// Requests about blocks of snapshots that are worked on at one time, so that there is room beside them, and
/// those that are read or wait.
const BLOCKS_AT_ONCE: usize = 16;
const BLOCKS_WAITING: usize = 64;
const TURN_PATIENCE: Duration = Duration::from_secs(30);

#[derive(Clone)]
struct Shared {
    api: Arc<Api>,
    turns: Arc<Semaphore>,
    /// Places for requests about blocks.
    places: Arc<Semaphore>,
}

/// Serves `api`: the Query protocol at `/`, the EBS direct APIs at `/snapshots`, metrics at `/metrics`.
pub fn router(api: Arc<Api>) -> Router {
    let places = Arc::new(Semaphore::new(BLOCKS_WAITING));
    let shared = move |turns| Shared {
        api: Arc::clone(&api),
        turns: Arc::new(Semaphore::new(turns)),
        places: Arc::clone(&places),
    };
    let of_blocks = Router::new().route("/snapshots", any(blocks)).route("/snapshots/{*rest}", any(blocks));
    let others = Router::new().route("/metrics", get(metrics)).fallback(query);
    others.with_state(shared(AT_ONCE)).merge(of_blocks.with_state(shared(BLOCKS_AT_ONCE)))
}

/// The same for the owner of the installation, with what happens at [`EVENTS`] until `stopped` says true.
/// Events are not signed for, so they are told where only the owner can ask.
pub fn local_router(api: Arc<Api>, stopped: watch::Receiver<bool>) -> Router {
    let events = Events::new(api.supervisor().notices().clone(), stopped);
    router(api).merge(Router::new().route(EVENTS, get(events::follow)).with_state(events))
}

async fn query(State(shared): State<Shared>, request: HttpRequest<Body>) -> HttpResponse<Body> {
    let wrong = |message| serve_error(&ApiError::new("InvalidAction", message), EC2);
    if !matches!(request.method().as_str(), "GET" | "POST") {
        return wrong("Requests are GET or POST");
    }
    if request.uri().path() != "/" {
        return wrong("There is nothing but / here");
    }
    serve(&shared, request, MAX_BODY, EC2).await
}

async fn blocks(State(shared): State<Shared>, request: HttpRequest<Body>) -> HttpResponse<Body> {
    // Before anything of a block is read.
    let place = tokio::time::timeout(TURN_PATIENCE, Arc::clone(&shared.places).acquire_owned()).await;
    match place {
        Ok(_place) => serve(&shared, request, MAX_BLOCK, EBS).await,
        Err(_) => serve_error(&busy(), EBS),
    }
}

/// Reads a request and answers it, errors in the dialect of `service`.
async fn serve(
    shared: &Shared,
    request: HttpRequest<Body>,
    most: usize,
    service: &'static Service,
) -> HttpResponse<Body> {
    let request = match read(request, most).await {
        Err(error) => return serve_error(&error, service),
        Ok(request) => request,
    };
    match work(shared, move |api| api.answer(request)).await {
        Ok(response) => http(response),
        Err(error) => serve_error(&error, service),
    }
}

fn serve_error(error: &ApiError, service: &Service) -> HttpResponse<Body> {
    http(Api::refuse(error, service))
}

async fn metrics(State(shared): State<Shared>) -> HttpResponse<Body> {
    match work(&shared, |api| api.metrics.text(api.supervisor())).await {
        Ok(Ok(text)) => answer(200, "text/plain; version=0.0.4", text),
        _ => answer(503, "text/plain", "the state database cannot be read\n".to_owned()),
    }
}

fn busy() -> ApiError {
    ApiError::new("Unavailable", "The server is overloaded; try again")
}

/// Runs blocking `job` when its turn comes.
async fn work<T: Send + 'static>(
    shared: &Shared,
    job: impl FnOnce(&Api) -> T + Send + 'static,
) -> Result<T, ApiError> {
    let turn = tokio::time::timeout(TURN_PATIENCE, Arc::clone(&shared.turns).acquire_owned()).await;
    let turn = turn.map_err(|_| busy())?;
    let api = Arc::clone(&shared.api);
    let done = tokio::task::spawn_blocking(move || {
        let result = job(&api);
        drop(turn);
        result
    });
    done.await.map_err(|e| ApiError::internal(&e))
}

/// Reads a request whose body has at most `most` bytes.
async fn read(request: HttpRequest<Body>, most: usize) -> Result<Request, ApiError> {
    let (head, body) = request.into_parts();
    let source = head.extensions.get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(peer)| peer.ip());
    let malformed = |message: &str| ApiError::new("MalformedQueryString", message);
    if head.headers.len() > MAX_HEADERS {
        return Err(malformed("The request has too many headers"));
    }
    let mut headers = Vec::new();
    for (name, value) in &head.headers {
        let value = value.to_str().map_err(|_| malformed("The request has a header that is not ASCII"))?;
        headers.push((name.as_str().to_owned(), value.to_owned()));
    }
    let too_large =
        |_| ApiError::new("RequestEntityTooLarge", format!("The body of a request has at most {most} bytes"));
    let body = tokio::time::timeout(BODY_PATIENCE, to_bytes(body, most)).await;
    let body = body.map_err(|_| ApiError::new("RequestTimeout", "The body of the request did not come"))?;
    Ok(Request {
        method: head.method.as_str().to_owned(),
        path: head.uri.path().to_owned(),
        query: head.uri.query().unwrap_or_default().to_owned(),
        headers,
        body: body.map_err(too_large)?.into(),
        source,
    })
}

fn http(response: Response) -> HttpResponse<Body> {
    let Written { status, kind, headers, body } = response.written;
    let mut http = answer(status, kind, body);
    let id = [("x-amzn-requestid", response.request_id)];
    for (name, value) in headers.into_iter().chain(id) {
        // Both are of our own making.
        let name = HeaderName::try_from(name.to_ascii_lowercase());
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_str(&value)) {
            http.headers_mut().insert(name, value);
        }
    }
    http
}

pub(super) fn answer(status: u16, kind: &'static str, body: impl Into<Body>) -> HttpResponse<Body> {
    let mut http = HttpResponse::new(body.into());
    *http.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    http.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    http
}
