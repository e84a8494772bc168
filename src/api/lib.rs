//! The EC2, IAM and STS Query API and the EBS direct APIs over the control plane, and `kilnd`, the daemon that
//! serves them.
//!
//! ```text
//!   HTTP ─▶ server ─▶ auth: SigV4 ─▶ caller ─▶ query: decode ─▶ auth: policy ─▶ DryRun? ─▶ actions
//!            │ bounded body,                    by schema          │                        │
//!            │ XML for every answer                                ▼                        ▼
//!            ◀──────────────── query: write by schema ◀──── error in the dialect     controlplane
//! ```
//!
//! The EBS direct APIs go the same way, with `rest` in the place of `query` and JSON in that of XML.
//!
//! Nothing a client sends has an effect before all of that said yes. Every answer is XML that was
//! written by the published model, errors included.

#![forbid(unsafe_code)]

mod actions;
mod auth;
pub mod daemon;
mod error;
#[cfg(any(test, feature = "test-utils"))]
pub mod fuzzing;
pub mod query;
mod rest;
pub mod schema;
mod server;
