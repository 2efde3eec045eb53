//! `DeltaSecrets`: a response holds what the client does not have yet, and the names of removed secrets.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use finial_proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource};
use prost::Message as _;
use tonic::Status;
use zeroize::{Zeroize as _, Zeroizing};

use super::exchange::{Protocol, check_names, check_type, log_rejection};
use super::node::Requester;
use super::secrets::{Asked, Found, SECRET_TYPE, version_of};
use crate::config::SdsSettings;

/// Subscribes to everything, or unsubscribes from it.
const WILDCARD: &str = "*";
const MAX_VERSION_BYTES: usize = 64;

/// One stream.
#[derive(Debug)]
pub struct Delta {
    settings: Arc<SdsSettings>,
    requester: Requester,
    is_first: bool,
    asked: Asked,
    /// Versions of what the client has by its own account, and of what it was sent, by name.
    held: BTreeMap<String, String>,
    /// Of the last response, until the client has accepted or refused it.
    last_nonce: Option<String>,
}

/// A response before it is sent.
#[derive(Debug)]
pub struct Reply {
    /// Names and versions in the response.
    given: Vec<(String, String)>,
    removed: Vec<String>,
    nonce: String,
    message: Bytes,
}

impl Delta {
    /// A stream that has just begun.
    pub fn new(settings: Arc<SdsSettings>) -> Self {
        Self {
            requester: Requester::unknown(&settings),
            settings,
            is_first: true,
            asked: Asked::default(),
            held: BTreeMap::new(),
            last_nonce: None,
        }
    }

    fn is_subscribed(&self, name: &str) -> bool {
        self.asked.everything || self.asked.names.contains(name)
    }
}

impl Protocol for Delta {
    type Request = DeltaDiscoveryRequest;
    type Reply = Reply;

    fn receive(&mut self, request: DeltaDiscoveryRequest) -> Result<(), Status> {
        check_type(&request.type_url)?;
        if let Some(node) = &request.node {
            self.requester = Requester::of(node, &self.settings);
        }
        let settled = self.last_nonce.take_if(|nonce| *nonce == request.response_nonce);
        if let Some(error) = &request.error_detail
            && settled.is_some()
        {
            log_rejection(&self.requester, self.asked.names.iter(), error);
        }
        let is_first = std::mem::replace(&mut self.is_first, false);
        if is_first {
            // A stream that begins without names subscribes to everything.
            self.asked.everything = request.resource_names_subscribe.is_empty();
            // A version that is longer is none of ours. There may be more names than may be asked for; the caller's share
            // of bytes is less by their message as long as the stream is open.
            let versions = request.initial_resource_versions.into_iter();
            self.held = versions
                .filter(|(_name, version)| version.len() <= MAX_VERSION_BYTES)
                .collect();
        }
        for name in request.resource_names_subscribe {
            if name == WILDCARD {
                self.asked.everything = true;
                continue;
            }
            if !is_first {
                // Asked for once more, it is sent once more.
                self.held.remove(&name);
            }
            self.asked.names.insert(name);
        }
        for name in request.resource_names_unsubscribe {
            if name == WILDCARD {
                self.asked.everything = false;
            } else {
                self.asked.names.remove(&name);
            }
        }
        check_names(self.asked.names.iter())?;
        let held = std::mem::take(&mut self.held);
        self.held = held
            .into_iter()
            .filter(|(name, _version)| self.is_subscribed(name))
            .collect();
        Ok(())
    }

    fn asked(&self) -> Option<&Asked> {
        (!self.is_first).then_some(&self.asked)
    }

    fn requester(&self) -> &Requester {
        &self.requester
    }

    /// What the client has and may no longer have is named as removed. What it never had is not: Envoy would
    /// begin to serve without it, where it otherwise waits a while for it to come.
    fn reply(&self, found: &Found, is_gone: &dyn Fn(&str) -> bool, nonce: String) -> Option<Reply> {
        let resources: Vec<Resource> = found
            .iter()
            .filter(|(name, secret)| self.held.get(*name) != Some(&secret.version))
            .map(|(name, secret)| Resource {
                name: name.clone(),
                version: secret.version.clone(),
                resource: Some(secret.resource(name)),
                ..Default::default()
            })
            .collect();
        let without = self.held.keys().filter(|name| !found.contains_key(*name));
        let removed: Vec<String> = without.filter(|name| is_gone(name)).cloned().collect();
        if resources.is_empty() && removed.is_empty() {
            return None;
        }
        let given = resources
            .iter()
            .map(|one| (one.name.clone(), one.version.clone()))
            .collect();
        let mut response = DeltaDiscoveryResponse {
            system_version_info: version_of(found),
            resources,
            type_url: SECRET_TYPE.to_owned(),
            nonce: nonce.clone(),
            removed_resources: removed.clone(),
        };
        let encoded = Zeroizing::new(response.encode_to_vec());
        for resource in response
            .resources
            .iter_mut()
            .filter_map(|one| one.resource.as_mut())
        {
            resource.value.zeroize();
        }
        Some(Reply {
            given,
            removed,
            nonce,
            message: Bytes::from_owner(encoded),
        })
    }

    fn sent(&mut self, reply: Reply) -> Bytes {
        self.held.extend(reply.given);
        for name in reply.removed {
            self.held.remove(&name);
        }
        self.last_nonce = Some(reply.nonce);
        reply.message
    }
}
