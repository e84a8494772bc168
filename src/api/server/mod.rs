//! HTTP in front of the API.

mod api;
mod events;
mod http;
mod metrics;

pub use api::Api;
pub use http::{local_router, router};
