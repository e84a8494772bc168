//! HTTP in front of the API.

mod api;
mod http;
mod metrics;

pub use api::Api;
pub use http::router;
