//! Client tokens: a request that is repeated because its answer got lost is carried out once.
//!
//! The row of a token is written in the transaction that makes the resources, with their ids; the
//! answer to a repetition is told from those. A token lives for a day.

use kiln_controlplane::network::NetworkError;
use kiln_controlplane::state::{Row, Store, StoreError, Transaction, transact};
use kiln_model::Tag;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::{Context, tagging};
use crate::error::ApiError;

/// How long a token is kept, in seconds.
const LIFE: u64 = 24 * 3600;
/// Longest token in characters.
const MAX_TOKEN: usize = 64;
/// And of the EBS direct APIs.
pub(super) const MAX_LONG_TOKEN: usize = 255;

/// A token that was used.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct ClientToken {
    /// Action and token.
    key: String,
    /// SHA-256 of who asked for what.
    request: String,
    /// What was made.
    pub resources: Vec<String>,
    /// When, Unix seconds.
    used: u64,
}

impl Row for ClientToken {
    const KIND: &'static str = "client-token";
    type Key = String;

    fn key(&self) -> String {
        self.key.clone()
    }
}

/// The token of a request.
pub(super) struct Token(Option<ClientToken>);

impl Token {
    /// Takes the token out of the parameters of `action`.
    pub(super) fn take(context: &Context<'_>, action: &str, input: &mut Value) -> Result<Self, ApiError> {
        Self::take_within(context, action, input, MAX_TOKEN)
    }

    /// The same where it may have `most` characters.
    pub(super) fn take_within(
        context: &Context<'_>,
        action: &str,
        input: &mut Value,
        most: usize,
    ) -> Result<Self, ApiError> {
        let token = input.as_object_mut().and_then(|object| object.remove("ClientToken"));
        let Some(token) = token.as_ref().and_then(Value::as_str) else { return Ok(Token(None)) };
        if token.chars().count() > most || !token.chars().all(|c| c.is_ascii_graphic()) {
            return Err(ApiError::value(format!("A ClientToken has up to {most} visible ASCII characters")));
        }
        // A template may say something else when the request comes again.
        let mut asked = context.asked.clone();
        if let Some(asked) = asked.as_mut().and_then(Value::as_object_mut) {
            asked.remove("ClientToken");
        }
        let request = format!("{} {}", context.caller.arn, asked.as_ref().unwrap_or(input));
        Ok(Token(Some(ClientToken {
            key: format!("{action}.{token}"),
            request: Sha256::digest(request).iter().map(|byte| format!("{byte:02x}")).collect(),
            resources: Vec::new(),
            used: context.now,
        })))
    }

    /// What the same request made before.
    pub(super) fn made(&self, store: &dyn Store) -> Result<Option<Vec<String>>, ApiError> {
        let Some(own) = &self.0 else { return Ok(None) };
        match transact(store, |tx| tx.get::<ClientToken>(&own.key))? {
            None => Ok(None),
            Some(there) if there.used.saturating_add(LIFE) < own.used => Ok(None),
            Some(there) if there.request == own.request => Ok(Some(there.resources)),
            Some(_) => Err(ApiError::new(
                "IdempotentParameterMismatch",
                "Arguments on this idempotent request are inconsistent with arguments used in previous request(s).",
            )),
        }
    }

    /// Forgets that it was used: what was made is not there after all.
    pub(super) fn forget(&self, store: &dyn Store) -> Result<(), StoreError> {
        let Some(own) = &self.0 else { return Ok(()) };
        transact(store, |tx| {
            tx.remove::<ClientToken>(&own.key);
            Ok(())
        })
    }

    /// Notes what was made, as part of the transaction that makes it.
    pub(super) fn note(&self, tx: &mut Transaction<'_>, resources: Vec<String>) -> Result<(), StoreError> {
        let Some(own) = &self.0 else { return Ok(()) };
        let over = |row: &ClientToken| row.used.saturating_add(LIFE) < own.used;
        for row in tx.list::<ClientToken>()?.iter().filter(|row| over(row)) {
            tx.remove::<ClientToken>(&row.key);
        }
        match tx.get::<ClientToken>(&own.key)? {
            // The same request was faster by a moment.
            Some(there) if !over(&there) => Err(StoreError::Contended),
            _ => tx.put(&ClientToken { resources, ..own.clone() }),
        }
    }
}

impl Token {
    /// What the transaction that makes one resource writes besides: its tags, and this token.
    pub(super) fn making<'a>(
        &'a self,
        tags: &'a [Tag],
    ) -> impl FnMut(&mut Transaction<'_>, &str) -> Result<(), StoreError> + 'a {
        move |tx, id| {
            tagging::set_new(tx, id, tags)?;
            self.note(tx, vec![id.to_owned()])
        }
    }
}

/// The id of the one resource that a request makes, or made when it was sent before.
pub(super) fn once(
    context: &Context<'_>,
    token: &Token,
    make: impl FnOnce(&Token) -> Result<String, NetworkError>,
) -> Result<String, ApiError> {
    once_of(context, token, make)
}

/// The same where making it fails in another way.
pub(super) fn once_of<E: Into<ApiError>>(
    context: &Context<'_>,
    token: &Token,
    make: impl FnOnce(&Token) -> Result<String, E>,
) -> Result<String, ApiError> {
    let store = context.plane.store();
    let made = || Ok::<_, ApiError>(token.made(store)?.and_then(|made| made.into_iter().next()));
    if let Some(id) = made()? {
        return Ok(id);
    }
    match make(token) {
        Ok(id) => Ok(id),
        // The same request may have been faster.
        Err(error) => made()?.ok_or_else(|| error.into()),
    }
}
