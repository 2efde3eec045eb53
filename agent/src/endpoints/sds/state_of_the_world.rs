//! `StreamSecrets` and `FetchSecrets`: each response holds all that is asked for.

use std::sync::Arc;

use bytes::Bytes;
use finial_proto::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use prost::Message as _;
use tonic::Status;
use zeroize::{Zeroize as _, Zeroizing};

use super::exchange::{Protocol, check_names, check_type, log_rejection};
use super::node::Requester;
use super::secrets::{Asked, Found, SECRET_TYPE, version_of};
use crate::config::SdsSettings;

/// One stream. Acknowledgements and refusals repeat the nonce of the response that they are about, and a request
/// with another one is of the past: a later one will come.
#[derive(Debug)]
pub struct StateOfTheWorld {
    settings: Arc<SdsSettings>,
    requester: Requester,
    /// `None` before the first request.
    asked: Option<Asked>,
    /// The client waits for an answer, whatever it had before: it has just come, or asks for something else.
    is_due: bool,
    /// Version and nonce of the last response, also when the client refused it.
    last: Option<(String, String)>,
    /// The client has accepted or refused it.
    is_settled: bool,
}

/// A response before it is sent.
#[derive(Debug)]
pub struct Reply {
    version: String,
    nonce: String,
    message: Bytes,
}

impl StateOfTheWorld {
    /// A stream that has just begun.
    pub fn new(settings: Arc<SdsSettings>) -> Self {
        Self {
            requester: Requester::unknown(&settings),
            settings,
            asked: None,
            is_due: false,
            last: None,
            is_settled: true,
        }
    }
}

impl Protocol for StateOfTheWorld {
    type Request = DiscoveryRequest;
    type Reply = Reply;

    fn receive(&mut self, request: DiscoveryRequest) -> Result<(), Status> {
        check_type(&request.type_url)?;
        check_names(request.resource_names.iter())?;
        if let Some(node) = &request.node {
            self.requester = Requester::of(node, &self.settings);
        }
        let nonce = self.last.as_ref().map_or("", |(_version, nonce)| nonce);
        // The first request of a stream may still know a nonce of an earlier stream.
        if self.asked.is_some() && request.response_nonce != nonce {
            return Ok(());
        }
        let is_settled = std::mem::replace(&mut self.is_settled, true);
        if let Some(error) = &request.error_detail
            && !is_settled
        {
            log_rejection(&self.requester, request.resource_names.iter(), error);
        }
        let asked = asked(request.resource_names);
        if self.asked.as_ref() != Some(&asked) {
            self.asked = Some(asked);
            self.is_due = true;
        }
        Ok(())
    }

    fn asked(&self) -> Option<&Asked> {
        self.asked.as_ref()
    }

    fn requester(&self) -> &Requester {
        &self.requester
    }

    /// A response without resources is never sent: Envoy would take it for an answer, or for a mistake, and
    /// waits as long without it.
    fn reply(&self, found: &Found, _is_gone: &dyn Fn(&str) -> bool, nonce: String) -> Option<Reply> {
        if found.is_empty() {
            return None;
        }
        let version = version_of(found);
        let is_new = self.last.as_ref().is_none_or(|(last, _nonce)| *last != version);
        (self.is_due || is_new).then(|| Reply {
            message: response(found, version.clone(), nonce.clone()),
            version,
            nonce,
        })
    }

    fn sent(&mut self, reply: Reply) -> Bytes {
        self.is_due = false;
        self.is_settled = false;
        self.last = Some((reply.version, reply.nonce));
        reply.message
    }
}

/// No names at all ask for everything, as with SPIRE.
pub(super) fn asked(names: Vec<String>) -> Asked {
    Asked {
        everything: names.is_empty(),
        names: names.into_iter().collect(),
    }
}

/// A response, encoded into memory that is zeroised when it was sent.
pub(super) fn response(found: &Found, version: String, nonce: String) -> Bytes {
    let resources = found.iter().map(|(name, secret)| secret.resource(name));
    let mut response = DiscoveryResponse {
        version_info: version,
        resources: resources.collect(),
        type_url: SECRET_TYPE.to_owned(),
        nonce,
        ..Default::default()
    };
    let encoded = Zeroizing::new(response.encode_to_vec());
    for resource in &mut response.resources {
        resource.value.zeroize();
    }
    Bytes::from_owner(encoded)
}
