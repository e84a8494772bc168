//! Roles, instance profiles and users, and the credentials that instances and users get.
//!
//! ```text
//!   Role ── SourceSpec ──▶ CredentialSource ── fetch ──▶ Credentials ─┐
//!    ▲        issuer · process · file · sts                           ▼
//!   InstanceProfile ◀── Association (row of the instance)          Rotation ──▶ document in the
//!                                                                  (when, retries,   metadata
//!                                                                   what is served)  snapshot
//! ```
//!
//! Rows hold no secret. Credentials exist in the memory of the process that runs the instance and in
//! the metadata of the instance; those of the embedded issuer need not be kept anywhere, because
//! whoever holds the installation's keys can tell the secret from the token.

mod access_key;
mod condition;
mod document;
mod file;
mod issuer;
mod json;
mod managed;
mod policy;
mod policy_set;
mod process;
mod role;
mod role_policies;
mod rotation;
pub(crate) mod service;
mod source;
mod status;
mod user_groups;
mod users;

pub use access_key::AccessKey;
pub use condition::RequestContext;
pub use document::{Credentials, failure_document};
pub use issuer::{Issuer, Principal, Session, VerifyError};
pub use managed::{Holders, ManagedPolicy, PolicyVersion};
pub use policy::{InvalidPolicy, Policy, TrustPolicy, Verdict};
pub use policy_set::PolicySet;
pub use role::{
    Association, InstanceProfile, InvalidRole, Lifetime, MAX_LIFETIME, MIN_LIFETIME, Role, RoleName,
};
pub use role_policies::RolePolicies;
pub use rotation::Rotation;
pub use service::{NewRole, RoleError, Roles};
pub use source::{
    AssumeRole, AssumeRoleRequest, CredentialSource, Fetch, NoSts, Opener, ParseSourceError, SourceError,
    SourceSpec, StsSource, Subject,
};
pub use status::{CredentialStatus, Slot};
pub use user_groups::UserGroup;
pub use users::{KeyUse, User, UserKey, note_use, signer};
