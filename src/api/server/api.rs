//! One request from its bytes to its answer. Blocks; knows nothing of sockets.

use std::net::IpAddr;

use kiln_controlplane::credentials::{AccessKey, Issuer};
use kiln_controlplane::identity::KeyError;
use kiln_controlplane::instances::Supervisor;
use kiln_controlplane::state::Vault;
use serde_json::Value;

use super::metrics::Metrics;
use crate::actions::{self, Context};
use crate::auth::{
    Authenticator, BlockTokens, Caller, Kind, Message, PolicyRequest, Signed, nothing, permits,
    permits_passing, refuse, resource_arn,
};
use crate::error::ApiError;
use crate::query::{Parameters, decode, envelope, parse};
use crate::rest::{self, Written};
use crate::schema::{EBS, EC2, Operation, SERVICES, Service};

/// Parameters of the protocol itself.
const PROTOCOL: [&str; 8] = [
    "Action",
    "Version",
    "X-Amz-Algorithm",
    "X-Amz-Credential",
    "X-Amz-Date",
    "X-Amz-Expires",
    "X-Amz-Signature",
    "X-Amz-SignedHeaders",
];
const TOKEN: &str = "X-Amz-Security-Token";

/// The API on a control plane.
pub struct Api {
    supervisor: Supervisor,
    auth: Authenticator,
    block_tokens: BlockTokens,
    pub(super) metrics: Metrics,
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Api")
    }
}

/// A request as it came.
pub(super) struct Request {
    pub method: String,
    /// As it came.
    pub path: String,
    /// Without `?`.
    pub query: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Where it comes from; `None` by the Unix socket.
    pub source: Option<IpAddr>,
}

/// What goes back.
pub(super) struct Response {
    pub request_id: String,
    pub written: Written,
}

fn xml(status: u16, body: String) -> Written {
    Written { status, kind: "text/xml;charset=UTF-8", headers: Vec::new(), body: body.into_bytes() }
}

/// An error in the dialect of `service`.
fn failure(error: &ApiError, service: &Service, request_id: &str) -> Written {
    if service.name == EBS.name {
        return rest::failure(error);
    }
    xml(error.status(), error.to_xml(service, request_id))
}

impl Api {
    /// The API on what `supervisor` looks after. Makes the keys at the first use. Blocks.
    pub fn new(supervisor: Supervisor) -> Result<Self, KeyError> {
        let plane = supervisor.plane();
        let vault = Vault::open(plane.store(), plane.state_dir())?;
        let auth = Authenticator::new(AccessKey::root(&vault)?, Issuer::new(plane.keys()?));
        let block_tokens = BlockTokens::open(&vault)?;
        Ok(Api { supervisor, auth, block_tokens, metrics: Metrics::default() })
    }

    /// The instances below.
    pub(super) fn supervisor(&self) -> &Supervisor {
        &self.supervisor
    }

    /// Answers one request. Blocks.
    pub(super) fn answer(&self, request: Request) -> Response {
        let request_id = request_id();
        let started = std::time::Instant::now();
        let mut known = Known { service: EC2, operation: None };
        let result = if rest::serves(&request.path) {
            self.serve_path(request, &mut known)
        } else {
            self.serve(&request, &request_id, &mut known).map(|body| xml(200, body))
        };
        let (service, operation) = (known.service, known.operation.map_or("unknown", |o| o.name));
        let code = result.as_ref().err().map_or("Success", |e| e.code.as_ref());
        self.metrics.count(service.name, operation, code, started.elapsed());
        // There are thousands of blocks in a snapshot.
        match (operation, code) {
            ("PutSnapshotBlock" | "GetSnapshotBlock", "Success") => {
                tracing::debug!(service = service.name, action = operation, request = request_id, "answered");
            }
            _ => tracing::info!(
                service = service.name,
                action = operation,
                code,
                request = request_id,
                "answered"
            ),
        }
        let written = result.unwrap_or_else(|error| failure(&error, service, &request_id));
        Response { request_id, written }
    }

    /// An error that has nothing to do with what was asked.
    pub(super) fn refuse(error: &ApiError, service: &Service) -> Response {
        let request_id = request_id();
        let written = failure(error, service, &request_id);
        Response { request_id, written }
    }

    /// What an action has at hand.
    fn context<'a>(&'a self, caller: &'a Caller, source: Option<IpAddr>, now: u64) -> Context<'a> {
        Context {
            supervisor: &self.supervisor,
            plane: self.supervisor.plane(),
            auth: &self.auth,
            block_tokens: &self.block_tokens,
            caller,
            source,
            now,
            asked: None,
        }
    }

    /// By the REST protocol.
    fn serve_path(&self, request: Request, known: &mut Known) -> Result<Written, ApiError> {
        known.service = EBS;
        let query = parse(&request.query)?;
        let target = rest::find(&request.method, &request.path).ok_or_else(|| {
            ApiError::new("UnknownOperation", format!("There is no {} of that path", request.method))
        })?;
        let operation = target.operation;
        known.operation = Some(operation);
        let message = Message {
            method: &request.method,
            path: &request.path,
            query: &query,
            headers: &request.headers,
            body: &request.body,
            unsigned_body: target.takes_block(),
        };
        let signed = Signed::read(message).map_err(|refusal| refuse(refusal, EBS))?;
        if signed.service != EBS.name {
            let message = format!("Credential should be scoped to the service {}", EBS.name);
            return Err(ApiError::new("SignatureDoesNotMatch", message));
        }
        let now = self.supervisor.plane().clock().unix_seconds();
        let caller = self.auth.authenticate(self.supervisor.plane(), &signed, EBS, now)?;
        let parameters = rest::gather(&target, &query, &request.headers, &request.body)?;
        let input = decode(operation.input, &parameters, &[])?;
        let (service, action, source) = (EBS.name, operation.name, request.source);
        let context = self.context(&caller, source, now);
        let about = &|resource: &str, known| actions::about(&context, action, &input, resource, known);
        let wanted = PolicyRequest { service, action, input: &input, meant: &[], about, source, now };
        permits(&self.supervisor.plane().roles(), &caller, &wanted)?;
        let action = actions::find_block_action(operation.name)
            .ok_or_else(|| ApiError::unsupported(format!("Kiln does not have {}", operation.name)))?;
        let reply = action(&context, input, request.body)?;
        rest::write(operation, target.status, reply)
    }

    fn serve(&self, request: &Request, request_id: &str, known: &mut Known) -> Result<String, ApiError> {
        let query = parse(&request.query)?;
        let body = std::str::from_utf8(&request.body)
            .map_err(|_| ApiError::new("MalformedQueryString", "The body of the request is not UTF-8"))?;
        let mut parameters = query.clone();
        parameters.extend(parse(body)?);
        let get = |name: &str| parameters.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
        let version = get("Version");
        // Errors are told in the dialect of whom the request means.
        known.service =
            SERVICES.into_iter().find(|service| Some(service.version) == version).unwrap_or(known.service);
        let (method, headers) = (request.method.as_str(), request.headers.as_slice());
        let (path, body) = (request.path.as_str(), request.body.as_slice());
        let message = Message { method, path, query: &query, headers, body, unsigned_body: false };
        let signed = Signed::read(message).map_err(|refusal| refuse(refusal, known.service))?;
        let service = Service::find(signed.service).ok_or_else(|| {
            ApiError::new("InvalidAction", format!("There is no service {} here", signed.service))
        })?;
        known.service = service;
        let now = self.supervisor.plane().clock().unix_seconds();
        let caller = self.auth.authenticate(self.supervisor.plane(), &signed, service, now)?;
        let name =
            get("Action").ok_or_else(|| ApiError::new("MissingAction", "The request has no Action"))?;
        if version.is_some_and(|version| version != service.version) {
            let message = format!(
                "The action {name} is not valid for this web service: its version is {}",
                service.version
            );
            return Err(ApiError::new("InvalidAction", message));
        }
        let operation = service.operation(name).ok_or_else(|| {
            ApiError::new("InvalidAction", format!("The action {name} is not valid for this web service."))
        })?;
        known.operation = Some(operation);
        let mut input = decode(operation.input, &parameters, &protocol(&query))?;
        let dry_run = take_dry_run(&mut input);
        let mut context = self.context(&caller, request.source, now);
        authorize(&context, service, name, &input)?;
        context.asked = actions::expand(&context, name, &mut input)?;
        if context.asked.is_some() {
            authorize(&context, service, name, &input)?;
        }
        if dry_run {
            let message = "Request would have succeeded, but DryRun flag is set.";
            return Err(ApiError::new("DryRunOperation", message));
        }
        let action = actions::find(service.name, name)
            .ok_or_else(|| ApiError::unsupported(format!("Kiln does not have {name}")))?;
        let value = action(&context, input)?;
        envelope(service, operation, &value, request_id).map_err(|e| ApiError::internal(&e))
    }
}

/// Whether the caller may: the action on all that it means, and what is done besides. By the Query protocol.
fn authorize(context: &Context<'_>, service: &Service, action: &str, input: &Value) -> Result<(), ApiError> {
    let (caller, service, source, now) = (context.caller, service.name, context.source, context.now);
    if caller.kind == Kind::Root {
        return Ok(());
    }
    let roles = context.plane.roles();
    if service == EC2.name {
        let about = &|resource: &str, known| actions::about(context, action, input, resource, known);
        let may = |action: &str, input: &Value, meant: &[String]| {
            permits(&roles, caller, &PolicyRequest { service, action, input, meant, about, source, now })
        };
        may(action, input, &actions::meant(context, action, input)?)?;
        for kind in actions::tagged(input) {
            may("CreateTags", &Value::Null, &[resource_arn(kind, "*")])?;
        }
    } else {
        let wanted = PolicyRequest { service, action, input, meant: &[], about: &nothing, source, now };
        permits(&roles, caller, &wanted)?;
    }
    match actions::passed_role(context, service, action, input)? {
        Some(role) => permits_passing(&roles, caller, &role, service, (source, now)),
        None => Ok(()),
    }
}

/// What a request turned out to mean so far.
struct Known {
    service: &'static Service,
    operation: Option<&'static Operation>,
}

/// The parameters that are the protocol's: those of a presigned query only in one.
fn protocol(query: &Parameters) -> Vec<&'static str> {
    let mut names = PROTOCOL.to_vec();
    if query.iter().any(|(name, _)| name == TOKEN) {
        names.push(TOKEN);
    }
    names
}

fn take_dry_run(input: &mut Value) -> bool {
    let object = input.as_object_mut();
    object.and_then(|object| object.remove("DryRun")).is_some_and(|value| value == true)
}

/// A random UUID.
fn request_id() -> String {
    let bits: u128 = rand::random();
    let bits = bits & !(0xf << 76) & !(0x3 << 62) | 4 << 76 | 2 << 62;
    let text = format!("{bits:032x}");
    let part = |range| text.get(range).unwrap_or_default();
    format!("{}-{}-{}-{}-{}", part(0..8), part(8..12), part(12..16), part(16..20), part(20..32))
}
