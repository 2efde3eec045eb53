//! What the tests look at: one server and one agent for all of them, and a foreign trust domain whose keys they hold.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use data_encoding::BASE64URL_NOPAD;
use finial_identity::bundle::{Bundle, JwtAuthority, X509Authority};
use finial_identity::key::{KeyType, PrivateKey, Signer};
use finial_identity::process::Clock;
use finial_identity::spiffe_id::TrustDomain;
use finial_identity::x509::Certificate;
use finial_proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use finial_proto::workload::{Jwtsvid, JwtsvidRequest, X509svidRequest, X509svidResponse};
use finial_tests::{Entry, Stack, StackOptions};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use serde_json::{Value, json};
use time::OffsetDateTime;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

use crate::wire::unix;

/// The identity with DNS name, hint and foreign bundle.
pub const WEB: &str = "/ns/prod/sa/web";
/// A hint is the operator's text, passed on as it is.
pub const WEB_HINT: &str = "intérieur: \"one\" / 1";
/// Two identities with the same hint.
pub const TWINS: [&str; 2] = ["/twin/a", "/twin/b"];
pub const FOREIGN: &str = "b.test";
/// The one foreign identity that the server lets in.
pub const FOREIGN_ADMIN: &str = "spiffe://b.test/admin";

/// The program as the tests find it; whoever changes it tolerates the others.
#[derive(Debug)]
pub struct Fixture {
    pub stack: Stack,
    pub foreign: Foreign,
    pub server_pid: u32,
    pub agent_pid: u32,
    /// The ID of 2048 bytes.
    pub longest_id: String,
}

/// Starts the program for the first test that asks; the last one that lets go of it ends it.
pub fn shared() -> Arc<Fixture> {
    static SHARED: Mutex<Weak<Fixture>> = Mutex::new(Weak::new());
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    shared.upgrade().unwrap_or_else(|| {
        let fixture = Arc::new(Fixture::start());
        *shared = Arc::downgrade(&fixture);
        fixture
    })
}

impl Fixture {
    fn start() -> Self {
        let server = format!("admin_ids = [\"{FOREIGN_ADMIN}\"]");
        let mut stack = Stack::start(StackOptions {
            server,
            ..StackOptions::default()
        });
        let foreign = Foreign::new();
        set_bundle(&stack, FOREIGN, &foreign.bundle().to_spiffe_json());
        let foreign_id = format!("spiffe://{FOREIGN}");
        let flags = [
            "-hint",
            WEB_HINT,
            "-dns",
            "web.example.org",
            "-federatesWith",
            &foreign_id,
        ];
        stack.create_entry(&Entry::for_me(WEB).with(&flags));
        for path in TWINS {
            stack.create_entry(&Entry::for_me(path).with(&["-hint", "twin"]));
        }
        let longest = format!("/{}", "a".repeat(2048 - "spiffe://example.org/".len()));
        stack.create_entry(&Entry::for_me(&longest));
        stack.wait_identity(&longest);
        stack.wait_identity(WEB);
        Fixture {
            foreign,
            server_pid: stack.server().pid(),
            agent_pid: stack.agent().pid(),
            longest_id: stack.id(&longest),
            stack,
        }
    }

    pub async fn workload_api(&self) -> SpiffeWorkloadApiClient<Channel> {
        workload_api(&self.stack).await
    }

    /// What a workload of this user gets.
    pub async fn x509_svids(&self) -> X509svidResponse {
        let stream = self
            .workload_api()
            .await
            .fetch_x509svid(secured(X509svidRequest {}))
            .await;
        first(stream).await.expect("this user has identities")
    }

    /// The leaf, the chain below it and the bundle of one identity.
    pub async fn x509_svid(&self, path: &str) -> X509Material {
        let id = self.stack.id(path);
        let svids = self.x509_svids().await.svids;
        let svid = svids
            .into_iter()
            .find(|svid| svid.spiffe_id == id)
            .expect("the identity was waited for");
        X509Material {
            chain: Certificate::parse_many(&svid.x509_svid).expect("DER certificates back to back"),
            key: PrivateKey::from_pkcs8_der(&svid.x509_svid_key).expect("a key in PKCS#8"),
            bundle: Certificate::parse_many(&svid.bundle).expect("DER certificates back to back"),
        }
    }

    /// One token for each identity, or for the one named.
    pub async fn jwt_svids(&self, audience: &[&str], spiffe_id: &str) -> Result<Vec<Jwtsvid>, Status> {
        let audience = audience.iter().map(|name| (*name).to_owned()).collect();
        let request = JwtsvidRequest {
            audience,
            spiffe_id: spiffe_id.to_owned(),
        };
        Ok(self
            .workload_api()
            .await
            .fetch_jwtsvid(secured(request))
            .await?
            .into_inner()
            .svids)
    }

    /// What the agent says of a token for `audience`.
    pub async fn validate(&self, audience: &str, token: &str) -> Result<(String, Value), Status> {
        use finial_proto::workload::ValidateJwtsvidRequest;
        let request = ValidateJwtsvidRequest {
            audience: audience.to_owned(),
            svid: token.to_owned(),
        };
        let answer = self
            .workload_api()
            .await
            .validate_jwtsvid(secured(request))
            .await?
            .into_inner();
        Ok((
            answer.spiffe_id,
            structure(answer.claims.expect("claims are mandatory")),
        ))
    }
}

/// An X509-SVID taken apart.
#[derive(Debug)]
pub struct X509Material {
    pub chain: Vec<Certificate>,
    pub key: PrivateKey,
    pub bundle: Vec<Certificate>,
}

/// A trust domain of which the tests hold the keys, so that they can sign what nobody should.
#[derive(Debug)]
pub struct Foreign {
    pub jwt_key: PrivateKey,
    ca_der: Vec<u8>,
    ca_key: KeyPair,
}

impl Foreign {
    pub fn new() -> Self {
        let ca_key = KeyPair::generate().expect("a key");
        let mut params = names(&format!("spiffe://{FOREIGN}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let ca_der = params.self_signed(&ca_key).expect("a certificate").der().to_vec();
        let jwt_key = PrivateKey::generate(KeyType::EcP256).expect("a key");
        Foreign {
            jwt_key,
            ca_der,
            ca_key,
        }
    }

    pub fn authority(&self) -> Certificate {
        Certificate::parse(&self.ca_der).expect("what was just made")
    }

    pub fn authority_key(&self) -> rustls::pki_types::PrivateKeyDer<'static> {
        rustls::pki_types::PrivatePkcs8KeyDer::from(self.ca_key.serialize_der()).into()
    }

    pub fn bundle(&self) -> Bundle {
        let mut bundle = Bundle::new(TrustDomain::parse(FOREIGN).expect("a name"));
        bundle.x509_authorities.push(X509Authority::new(self.authority()));
        bundle.jwt_authorities.push(JwtAuthority {
            key_id: "foreign".into(),
            public_key: self.jwt_key.public_key().clone(),
            expires_at: 0,
            tainted: false,
        });
        bundle.sequence_number = 9_007_199_254_740_993;
        bundle.refresh_hint = 300;
        bundle
    }

    /// A leaf signed by the foreign authority, whatever it says of itself.
    pub fn leaf(&self, uri: &str) -> crate::wire::Identity {
        let key = KeyPair::generate().expect("a key");
        let mut params = names(uri);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let issuer = Issuer::new(names(&format!("spiffe://{FOREIGN}")), &self.ca_key);
        let certificate = params.signed_by(&key, &issuer).expect("a certificate");
        let key = rustls::pki_types::PrivatePkcs8KeyDer::from(key.serialize_der()).into();
        crate::wire::Identity {
            chain: vec![certificate.der().clone()],
            key,
        }
    }

    /// A token with that header and those claims, signed by the right foreign key.
    pub fn token(&self, header: &Value, claims: &Value) -> String {
        let part = |value: &Value| BASE64URL_NOPAD.encode(value.to_string().as_bytes());
        let input = format!("{}.{}", part(header), part(claims));
        let signature = self.jwt_key.sign_jws(input.as_bytes()).expect("a signature");
        format!("{input}.{}", BASE64URL_NOPAD.encode(&signature))
    }

    pub fn header() -> Value {
        json!({"alg": "ES256", "kid": "foreign", "typ": "JWT"})
    }

    /// Claims that a validator for `db` accepts.
    pub fn claims() -> Value {
        let now = now().unix_timestamp();
        json!({"sub": format!("spiffe://{FOREIGN}/x"), "aud": ["db"], "exp": now + 600, "iat": now - 10, "team": "b"})
    }
}

fn names(uri: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(rcgen::DnType::OrganizationName, FOREIGN);
    params.subject_alt_names = vec![SanType::URI(uri.try_into().expect("ASCII"))];
    params.not_before = now() - time::Duration::hours(1);
    params.not_after = now() + time::Duration::hours(1);
    params
}

pub fn now() -> OffsetDateTime {
    Clock::system().now()
}

pub async fn workload_api(stack: &Stack) -> SpiffeWorkloadApiClient<Channel> {
    SpiffeWorkloadApiClient::new(unix(stack.agent_socket()).await.expect("the agent's socket"))
}

/// A request with the metadata that every request must carry.
pub fn secured<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request
        .metadata_mut()
        .insert("workload.spiffe.io", "true".parse().expect("ASCII"));
    request
}

/// The first message of a stream.
pub async fn first<T>(stream: Result<Response<tonic::Streaming<T>>, Status>) -> Result<T, Status> {
    let message = stream?.into_inner().message().await?;
    message.ok_or_else(|| Status::new(Code::Ok, "the stream ended without a message"))
}

/// Gives the server a foreign bundle, which must be accepted.
pub fn set_bundle(stack: &Stack, trust_domain: &str, document: &str) {
    let output = try_set_bundle(stack, trust_domain, document);
    assert!(output.status.success(), "{}{}", output.stdout, output.stderr);
}

pub fn try_set_bundle(stack: &Stack, trust_domain: &str, document: &str) -> finial_tests::Output {
    let file = stack.dir().join(format!("{trust_domain}.json"));
    std::fs::write(&file, document).expect("the file is written");
    let (id, path) = (format!("spiffe://{trust_domain}"), file.display().to_string());
    stack.server_cli(&["bundle", "set", "-format", "spiffe", "-id", &id, "-path", &path])
}

/// The JSON object in one part of a token.
pub fn token_part(token: &str, index: usize) -> Value {
    let part = token.split('.').nth(index).expect("a token has three parts");
    let bytes = BASE64URL_NOPAD
        .decode(part.as_bytes())
        .expect("base64url without padding");
    serde_json::from_slice(&bytes).expect("JSON")
}

/// The audience of a token; its order means nothing.
pub fn audience(token: &str) -> BTreeSet<String> {
    let values = token_part(token, 1)["aud"].take();
    serde_json::from_value(values).expect("a list of texts")
}

fn structure(fields: prost_types::Struct) -> Value {
    Value::Object(
        fields
            .fields
            .into_iter()
            .map(|(name, value)| (name, plain(value)))
            .collect(),
    )
}

fn plain(value: prost_types::Value) -> Value {
    use prost_types::value::Kind;
    match value.kind {
        Some(Kind::BoolValue(value)) => json!(value),
        Some(Kind::NumberValue(value)) => json!(value),
        Some(Kind::StringValue(value)) => json!(value),
        Some(Kind::ListValue(list)) => Value::Array(list.values.into_iter().map(plain).collect()),
        Some(Kind::StructValue(fields)) => structure(fields),
        Some(Kind::NullValue(_)) | None => Value::Null,
    }
}
