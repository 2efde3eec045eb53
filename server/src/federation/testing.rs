//! Foreign trust domains for tests: their authorities, and endpoints whose answers the test decides.
#![allow(clippy::disallowed_methods)] // The endpoint runs beside the test that asks it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock};

use finial_identity::bundle::{Bundle, X509Authority};
use finial_identity::federation::{EndpointProfile, EndpointUrl, Relationship};
use finial_identity::key::{KeyType, PrivateKey, SignerForRcgen, SubjectKeyForRcgen};
use finial_identity::peer;
use finial_identity::process::Clock;
use finial_identity::spiffe_id::{SpiffeId, TrustDomain};
use finial_identity::x509::{Certificate, X509Svid};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyUsagePurpose,
    SanType,
};
use time::{Duration, OffsetDateTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use crate::store::testing::domain as own_domain;
use crate::store::{SqliteStore, Store};

pub(crate) fn domain(name: &str) -> TrustDomain {
    TrustDomain::parse(name).unwrap()
}

pub(crate) fn web(name: &str, url: &str) -> Relationship {
    Relationship {
        trust_domain: domain(name),
        endpoint_url: EndpointUrl::parse(url).unwrap(),
        profile: EndpointProfile::HttpsWeb,
    }
}

pub(crate) async fn store() -> Arc<dyn Store> {
    Arc::new(
        SqliteStore::in_memory(&own_domain(), Clock::system())
            .await
            .unwrap(),
    )
}

/// A bundle with one authority, the same for the same arguments.
pub(crate) fn bundle(name: &str, seed: u8) -> Bundle {
    static MADE: OnceLock<Mutex<BTreeMap<(String, u8), Bundle>>> = OnceLock::new();
    let mut made = MADE.get_or_init(Mutex::default).lock().unwrap();
    made.entry((name.to_owned(), seed))
        .or_insert_with(|| Authority::new(name).bundle(0))
        .clone()
}

/// An authority of a foreign trust domain.
pub(crate) struct Authority {
    trust_domain: TrustDomain,
    key: PrivateKey,
    pub(crate) certificate: Certificate,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let key = PrivateKey::generate(KeyType::EcP256).unwrap();
        let params = ca_params(name, &key);
        let signed = params.self_signed(&SignerForRcgen::new(&key).unwrap()).unwrap();
        Self {
            trust_domain: domain(name),
            certificate: Certificate::parse(signed.der()).unwrap(),
            key,
        }
    }

    pub(crate) fn bundle(&self, sequence_number: u64) -> Bundle {
        let mut bundle = Bundle::new(self.trust_domain.clone());
        bundle.x509_authorities = vec![X509Authority::new(self.certificate.clone())];
        bundle.sequence_number = sequence_number;
        bundle
    }

    /// An SVID that expires so long from now.
    pub(crate) fn svid(&self, path: &str, ttl: Duration) -> Arc<X509Svid> {
        let id = SpiffeId::new(&self.trust_domain, path).unwrap();
        let key = Arc::new(PrivateKey::generate(KeyType::EcP256).unwrap());
        let now = OffsetDateTime::now_utc();
        let mut params = params(id.as_str());
        params.not_before = now - Duration::hours(2);
        params.not_after = now + ttl;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let issuer = Issuer::new(
            ca_params(self.trust_domain.as_str(), &self.key),
            SignerForRcgen::new(&self.key).unwrap(),
        );
        let signed = params
            .signed_by(&SubjectKeyForRcgen::new(key.public_key()).unwrap(), &issuer)
            .unwrap();
        let leaf = Certificate::parse(signed.der()).unwrap();
        Arc::new(X509Svid::new(vec![leaf], key).unwrap())
    }
}

fn params(uri: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
    params.serial_number = Some(rand::random::<u64>().into());
    params.use_authority_key_identifier_extension = true;
    params
}

fn ca_params(name: &str, key: &PrivateKey) -> CertificateParams {
    let now = OffsetDateTime::now_utc();
    let mut params = params(&format!("spiffe://{name}"));
    params.use_authority_key_identifier_extension = false;
    params.not_before = now - Duration::days(1);
    params.not_after = now + Duration::days(1);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key_id = data_encoding::HEXLOWER.encode(&key.public_key().subject_key_id());
    params.distinguished_name.push(DnType::CommonName, key_id);
    params
}

/// An endpoint on loopback that says the same to everybody.
pub(crate) struct Endpoint {
    pub(crate) port: u16,
    svid: watch::Sender<Option<Arc<X509Svid>>>,
    answer: Arc<Mutex<Vec<u8>>>,
    paths: Arc<Mutex<Vec<String>>>,
    serving: JoinHandle<()>,
}

impl Endpoint {
    pub(crate) async fn start(svid: Arc<X509Svid>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (svid, present) = watch::channel(Some(svid));
        let mut tls = peer::server_config(present, None, Clock::system());
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let tls = TlsAcceptor::from(Arc::new(tls));
        let (answer, paths) = (
            Arc::<Mutex<Vec<u8>>>::default(),
            Arc::<Mutex<Vec<String>>>::default(),
        );
        let (says, hears) = (Arc::clone(&answer), Arc::clone(&paths));
        let serving = tokio::spawn(async move {
            loop {
                let (stream, _from) = listener.accept().await.unwrap();
                let Ok(mut stream) = tls.accept(stream).await else {
                    continue;
                };
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let Ok(byte) = stream.read_u8().await else { break };
                    head.push(byte);
                }
                let head = String::from_utf8(head).unwrap();
                let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
                let says = match &path[..] {
                    "/moved" => redirect(302, "/"),
                    "/around" => redirect(302, "/around"),
                    _ => says.lock().unwrap().clone(),
                };
                hears.lock().unwrap().push(path);
                // A client that has read enough closes.
                let _closed = stream.write_all(&says).await;
                let _closed = stream.shutdown().await;
            }
        });
        Self {
            port,
            svid,
            answer,
            paths,
            serving,
        }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("https://127.0.0.1:{}{path}", self.port)
    }

    pub(crate) fn present(&self, svid: Arc<X509Svid>) {
        self.svid.send_replace(Some(svid));
    }

    pub(crate) fn say(&self, answer: impl Into<Vec<u8>>) {
        *self.answer.lock().unwrap() = answer.into();
    }

    pub(crate) fn serve(&self, bundle: &Bundle) {
        self.say(ok(&bundle.to_spiffe_json()));
    }

    pub(crate) fn paths(&self) -> Vec<String> {
        self.paths.lock().unwrap().clone()
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

pub(crate) fn ok(body: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

pub(crate) fn redirect(status: u16, location: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status} Moved\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n").into_bytes()
}
