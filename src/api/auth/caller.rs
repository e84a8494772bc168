//! From a signature to a principal.

use std::net::IpAddr;

use kiln_controlplane::credentials::{
    AccessKey, Issuer, KeyUse, RequestContext, VerifyError, note_use, signer,
};
use kiln_controlplane::instances::ControlPlane;
use kiln_controlplane::metadata::{ACCOUNT, REGION};
use kiln_model::Utc;

use super::{Refusal, Signed};
use crate::error::ApiError;
use crate::schema::Service;

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Caller {
    /// ARN.
    pub arn: String,
    /// Unique id.
    pub id: String,
    /// What he is.
    pub kind: Kind,
}

/// What a caller is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The account itself: may do everything.
    Root,
    /// A session of a role, of this name.
    Role(String),
    /// A user.
    User {
        /// Its name.
        name: String,
        /// By credentials of `GetSessionToken` rather than its own.
        temporary: bool,
    },
}

impl Caller {
    /// ARN of who has the policies: of a session, that of its role.
    pub(crate) fn principal(&self) -> String {
        match &self.kind {
            Kind::Role(role) => format!("arn:aws:iam::{ACCOUNT}:role/{role}"),
            _ => self.arn.clone(),
        }
    }

    /// What conditions of policies know of a request of this caller; `source`: where it comes from; `now`: Unix
    /// seconds.
    pub(crate) fn context(&self, source: Option<IpAddr>, now: u64) -> RequestContext {
        let kind = match &self.kind {
            Kind::Root => "Account",
            Kind::Role(_) => "AssumedRole",
            Kind::User { .. } => "User",
        };
        let mut context = RequestContext::default()
            .with("aws:CurrentTime", Utc::from_unix(now).rfc3339())
            .with("aws:EpochTime", now.to_string())
            .with("aws:PrincipalAccount", ACCOUNT)
            .with("aws:PrincipalArn", self.principal())
            .with("aws:PrincipalType", kind)
            .with("aws:RequestedRegion", REGION)
            .with("aws:SecureTransport", "false")
            .with("aws:userid", self.id.as_str());
        if let Kind::User { name, .. } = &self.kind {
            context = context.with("aws:username", name.as_str());
        }
        match source {
            Some(address) => context.with("aws:SourceIp", address.to_canonical().to_string()),
            None => context,
        }
    }
}

/// Verifies requests.
#[derive(Debug)]
pub(crate) struct Authenticator {
    root: AccessKey,
    issuer: Issuer,
}

impl Authenticator {
    pub(crate) fn new(root: AccessKey, issuer: Issuer) -> Self {
        Authenticator { root, issuer }
    }

    /// What gives session credentials.
    pub(crate) fn issuer(&self) -> &Issuer {
        &self.issuer
    }

    /// Who signed; users are those of `plane`. `now`: Unix seconds.
    pub(crate) fn authenticate(
        &self,
        plane: &ControlPlane,
        signed: &Signed<'_>,
        service: &Service,
        now: u64,
    ) -> Result<Caller, ApiError> {
        let refused = |refusal| refuse(refusal, service);
        match signed.token {
            None if signed.access_key_id == self.root.id => {
                signed.verify(self.root.secret.expose(), now).map_err(refused)?;
                let arn = format!("arn:aws:iam::{ACCOUNT}:root");
                Ok(Caller { arn, id: ACCOUNT.to_owned(), kind: Kind::Root })
            }
            None => {
                let found = signer(plane.store(), plane.state_dir(), signed.access_key_id);
                let found = found.map_err(|e| ApiError::internal(&e))?;
                let (user, secret) = found.ok_or_else(|| unknown_key(service))?;
                signed.verify(secret.expose(), now).map_err(refused)?;
                let (service, region) = (signed.service.to_owned(), signed.region.to_owned());
                let used = KeyUse { at: now, service, region };
                if let Err(e) = note_use(plane.store(), signed.access_key_id, &used) {
                    tracing::warn!("the use of an access key is not noted: {e}");
                }
                let kind = Kind::User { name: user.name.to_string(), temporary: false };
                Ok(Caller { arn: user.arn, id: user.id, kind })
            }
            Some(token) => {
                let session = self.issuer.verify(signed.access_key_id, token, now).map_err(|e| match e {
                    VerifyError::Invalid => unknown_key(service),
                    VerifyError::Expired if service.name == "ec2" => {
                        ApiError::new("RequestExpired", e.to_string())
                    }
                    VerifyError::Expired => ApiError::new("ExpiredToken", e.to_string()),
                })?;
                signed.verify(session.secret_access_key.expose(), now).map_err(refused)?;
                let (arn, id) = (session.principal.arn, session.principal.id);
                if let Some((_, name)) = arn.split_once(":user/") {
                    let kind = Kind::User { name: name.to_owned(), temporary: true };
                    return Ok(Caller { arn, id, kind });
                }
                // arn:aws:sts::ACCOUNT:assumed-role/ROLE/SESSION
                let role = arn.split('/').nth(1).unwrap_or_default().to_owned();
                Ok(Caller { arn, id, kind: Kind::Role(role) })
            }
        }
    }
}

fn unknown_key(service: &Service) -> ApiError {
    match service.name {
        "ec2" => {
            ApiError::new("AuthFailure", "Kiln was not able to validate the provided access credentials")
        }
        _ => ApiError::new(
            "InvalidClientTokenId",
            "The security token included in the request is invalid (see kiln env)",
        ),
    }
}

/// The refusal in the words of a service.
pub(crate) fn refuse(refusal: Refusal, service: &Service) -> ApiError {
    let ec2 = service.name == "ec2";
    match refusal {
        Refusal::Missing => ApiError::new(
            "MissingAuthenticationToken",
            "The request is not signed; eval \"$(kiln env)\" gives AWS tools the key to do so",
        ),
        Refusal::Incomplete(why) => {
            ApiError::new("IncompleteSignature", format!("The signature of the request is incomplete: {why}"))
        }
        Refusal::Expired if ec2 => ApiError::new("RequestExpired", "Request has expired: compare the clocks"),
        Refusal::Expired => {
            ApiError::new("SignatureDoesNotMatch", "Signature expired or not yet current: compare the clocks")
        }
        Refusal::Mismatch if ec2 => unknown_key(service),
        Refusal::Mismatch => ApiError::new(
            "SignatureDoesNotMatch",
            "The request signature we calculated does not match the signature you provided",
        ),
    }
}
