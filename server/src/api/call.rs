//! One call: its caller, its rate limit, and the fields of its audit log line. The endpoints
//! put a [`Call`] into each request's extensions; the services read it.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use finial_identity::spiffe_id::SpiffeId;
use finial_identity::x509::Certificate;
use futures_util::future::BoxFuture;
use tonic::{Request, Status};
use uuid::Uuid;

use super::status::Refusal;

/// What a caller may do, as SPIRE divides callers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CallerClass {
    /// Anybody, also without a certificate.
    Nobody,
    /// Connected to the private Unix socket.
    Local,
    /// Holds an SVID that is listed in `admin_ids` or has an admin entry.
    Admin,
    /// Holds an SVID that has a downstream entry.
    Downstream,
    /// An attested node with its current SVID.
    Agent,
}

impl CallerClass {
    /// The name in the audit log (`authorized_as`).
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Nobody => "nobody",
            Self::Local => "local",
            Self::Admin => "admin",
            Self::Downstream => "downstream",
            Self::Agent => "agent",
        }
    }
}

/// What proved the class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// Nothing was needed.
    Nothing,
    /// The socket that the caller is connected to.
    Transport,
    /// The `admin_ids` of the configuration.
    Config,
    /// A registration entry.
    Entries,
    /// The node's record.
    Datastore,
}

impl Via {
    /// The name in the audit log (`authorized_via`).
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Nothing => "",
            Self::Transport => "transport",
            Self::Config => "config",
            Self::Entries => "entries",
            Self::Datastore => "datastore",
        }
    }
}

/// The other end of a connection.
#[derive(Clone, Debug)]
pub enum Peer {
    /// A process on this machine, by its socket credentials at connection time.
    Local {
        /// User id.
        uid: u32,
        /// Group id.
        gid: u32,
        /// Process id, when the kernel reports it.
        pid: Option<i32>,
        /// Its executable, when it can be read.
        path: Option<PathBuf>,
    },
    /// A TLS client.
    Remote {
        /// Its address.
        addr: SocketAddr,
        /// Its verified certificate and the SPIFFE ID in it, when it presented one.
        svid: Option<(SpiffeId, Certificate)>,
        /// The certificates that it presented with it, which lead to an authority.
        intermediates: Arc<[Certificate]>,
    },
}

impl Peer {
    /// Whether it came over the network and presented no SVID.
    pub fn is_stranger(&self) -> bool {
        matches!(self, Self::Remote { svid: None, .. })
    }
}

/// Who makes a call.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The class that admitted the call.
    pub class: CallerClass,
    /// What proved it.
    pub via: Via,
    /// The connection's other end.
    pub peer: Arc<Peer>,
}

impl Caller {
    /// The SPIFFE ID presented, if any.
    pub fn spiffe_id(&self) -> Option<&SpiffeId> {
        match &*self.peer {
            Peer::Remote {
                svid: Some((id, _)), ..
            } => Some(id),
            _ => None,
        }
    }

    /// The certificates presented, the peer's own first; none without an SVID.
    pub fn chain(&self) -> Vec<Certificate> {
        match &*self.peer {
            Peer::Remote {
                svid: Some((_, certificate)),
                intermediates,
                ..
            } => std::iter::once(certificate)
                .chain(intermediates.iter())
                .cloned()
                .collect(),
            _ => Vec::new(),
        }
    }

    /// The serial number of the certificate presented, decimal.
    pub fn serial(&self) -> Option<String> {
        match &*self.peer {
            Peer::Remote {
                svid: Some((_, certificate)),
                ..
            } => Some(certificate.serial_decimal()),
            _ => None,
        }
    }
}

/// Takes tokens for the items of a call from the rate limit of its method.
#[derive(Clone)]
pub struct Tokens(Arc<TakeTokens>);

type TakeTokens = dyn Fn(u32) -> BoxFuture<'static, Result<(), Refusal>> + Send + Sync;

impl Tokens {
    /// Wraps what waits for the given number of tokens.
    pub fn new(
        take: impl Fn(u32) -> BoxFuture<'static, Result<(), Refusal>> + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(take))
    }
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tokens")
    }
}

/// One call. Cheap to clone; clones write the same audit trail.
#[derive(Clone, Debug)]
pub struct Call {
    /// Drawn for each call; shared by all audit lines of a batch.
    pub request_id: Uuid,
    /// Who makes it.
    pub caller: Caller,
    tokens: Option<Tokens>,
    trail: Arc<Mutex<Trail>>,
}

/// What the audit log says of a call besides the caller and the method.
#[derive(Clone, Debug, Default)]
pub struct Trail {
    /// Fields of the request as a whole.
    pub fields: Fields,
    /// One element for each item of a batch, with its outcome.
    pub items: Vec<Item>,
}

/// Field names (from [`field`]) and their values.
pub type Fields = Vec<(&'static str, String)>;

/// An item of a batch.
#[derive(Clone, Debug)]
pub struct Item {
    /// What it was about.
    pub fields: Fields,
    /// The gRPC code and message of a refusal; none on success.
    pub refusal: Option<(tonic::Code, String)>,
}

/// The field names of the audit log, as SPIRE has them.
pub mod field {
    #![allow(missing_docs)] // The value says it all.
    pub const SPIFFE_ID: &str = "spiffe_id";
    pub const PARENT_ID: &str = "parent_id";
    pub const SELECTORS: &str = "selectors";
    pub const ENTRY_ID: &str = "entry_id";
    pub const AGENT_ID: &str = "agent_id";
    pub const CSR: &str = "csr";
    pub const TTL: &str = "ttl";
    pub const AUDIENCE: &str = "audience";
    pub const TRUST_DOMAIN_ID: &str = "trust_domain_id";
    pub const ATTESTATION_TYPE: &str = "node_attestor_type";
    pub const AUTHORITY_ID: &str = "local_authority_id";
    pub const LOG_LEVEL: &str = "new_level";
    pub const FEDERATES_WITH: &str = "federates_with";
    pub const EXPIRES_AT: &str = "expires_at";
    pub const ADMIN: &str = "admin";
    pub const DOWNSTREAM: &str = "downstream";
    pub const DNS_NAMES: &str = "dns_name";
    pub const HINT: &str = "hint";
    pub const JWT_KEY_ID: &str = "jwt_authority_key_id";
    pub const WIT_KEY_ID: &str = "wit_authority_key_id";
    pub const PUBLIC_KEY: &str = "public_key";
    pub const MODE: &str = "mode";
    pub const AGENT_VERSION: &str = "agent_version";
    pub const HELD: &str = "held";
    pub const BUNDLE_ENDPOINT_URL: &str = "bundle_endpoint_url";
    pub const BUNDLE_ENDPOINT_PROFILE: &str = "bundle_endpoint_profile";
    pub const ENDPOINT_SPIFFE_ID: &str = "endpoint_spiffe_id";
}

impl Call {
    /// A call by this caller; items are paid for with `tokens`.
    pub fn new(caller: Caller, tokens: Option<Tokens>) -> Self {
        Self {
            request_id: Uuid::new_v4(),
            caller,
            tokens,
            trail: Arc::default(),
        }
    }

    /// The call that a request belongs to.
    ///
    /// # Errors
    /// `INTERNAL` when the request did not come through the endpoints.
    pub fn of<T>(request: &Request<T>) -> Result<Self, Status> {
        request
            .extensions()
            .get::<Self>()
            .cloned()
            .ok_or_else(|| Status::internal("request carries no caller"))
    }

    /// The calling agent.
    ///
    /// # Errors
    /// `PERMISSION_DENIED` when the caller is not an agent, which the table rules out.
    pub fn agent(&self) -> Result<&SpiffeId, Refusal> {
        match self.caller.class {
            CallerClass::Agent => self.caller.spiffe_id(),
            _ => None,
        }
        .ok_or_else(|| Refusal::denied("caller is not an agent"))
    }

    /// Waits until `count` items may be worked on.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` when they never may, or not before the deadline.
    pub async fn pay_for(&self, count: usize) -> Result<(), Refusal> {
        match &self.tokens {
            None => Ok(()),
            Some(Tokens(take)) => take(u32::try_from(count).unwrap_or(u32::MAX)).await,
        }
    }

    /// Adds a field to the audit log's line of this call.
    pub fn note(&self, name: &'static str, value: impl fmt::Display) {
        self.with_trail(|trail| trail.fields.push((name, value.to_string())));
    }

    /// Adds a line to the audit log: an item of a batch and its outcome.
    pub fn note_item<T>(&self, fields: Fields, outcome: Result<T, &Refusal>) {
        let refusal = outcome.err().map(|r| (r.code(), r.message().to_owned()));
        self.with_trail(|trail| trail.items.push(Item { fields, refusal }));
    }

    /// What was noted so far.
    pub fn trail(&self) -> Trail {
        self.with_trail(|trail| trail.clone())
    }

    /// Turns a refusal into what is sent. Its cause is logged with the request's id and stays here.
    pub fn refuse(&self, refusal: Refusal) -> Status {
        refusal.into_status(self.request_id)
    }

    /// As [`Call::refuse`], for an item of a batch.
    pub fn refuse_item(&self, refusal: &Refusal) -> finial_proto::spire::api::types::Status {
        refusal.to_item_status(self.request_id)
    }

    fn with_trail<R>(&self, f: impl FnOnce(&mut Trail) -> R) -> R {
        f(&mut self.trail.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
