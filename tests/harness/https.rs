//! Bundle endpoints whose answers the test decides, and a client for them.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use finial_identity::x509::Certificate;
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection, StreamOwned};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};

const PATIENCE: Duration = Duration::from_secs(20);

/// What the end of a TLS connection shows.
#[derive(Debug)]
pub struct TlsIdentity {
    pub chain: Vec<CertificateDer<'static>>,
    pub key: PrivateKeyDer<'static>,
}

impl Clone for TlsIdentity {
    fn clone(&self) -> Self {
        TlsIdentity {
            chain: self.chain.clone(),
            key: self.key.clone_key(),
        }
    }
}

impl TlsIdentity {
    /// As `finial server x509 mint -write` leaves it.
    pub fn from_files(dir: &Path) -> Self {
        let chain = std::fs::read_to_string(dir.join("svid.pem")).expect("a minted SVID");
        let chain = Certificate::from_pem(&chain).expect("PEM").into_iter();
        TlsIdentity {
            chain: chain.map(|certificate| certificate.der().clone()).collect(),
            key: PrivateKeyDer::from_pem_file(dir.join("key.pem")).expect("a minted key"),
        }
    }
}

/// An authority such as the web trusts.
pub struct WebAuthority {
    params: CertificateParams,
    key: KeyPair,
    pem: String,
}

impl std::fmt::Debug for WebAuthority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("WebAuthority")
    }
}

impl WebAuthority {
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key");
        let signed = params.self_signed(&key).expect("a certificate");
        let pem = Certificate::parse(signed.der()).expect("a certificate").to_pem();
        WebAuthority { params, key, pem }
    }

    /// The root, as `SSL_CERT_FILE` takes it.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// A server's certificate for these DNS names and IP addresses.
    pub fn server(&self, names: &[&str]) -> TlsIdentity {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("names");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate().expect("a key");
        let issuer = Issuer::from_params(&self.params, &self.key);
        let signed = params.signed_by(&key, &issuer).expect("a certificate");
        TlsIdentity {
            chain: vec![signed.der().clone()],
            key: PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        }
    }

    /// The same in the files `cert.pem` and `key.pem` of a folder.
    pub fn write_server(&self, names: &[&str], dir: &Path) {
        let identity = self.server(names);
        let leaf = Certificate::parse(&identity.chain[0]).expect("a certificate");
        std::fs::write(dir.join("cert.pem"), leaf.to_pem()).expect("cert.pem is written");
        let text = data_encoding::BASE64.encode(identity.key.secret_der());
        let key = format!("-----BEGIN PRIVATE KEY-----\n{text}\n-----END PRIVATE KEY-----\n");
        std::fs::write(dir.join("key.pem"), key).expect("key.pem is written");
    }
}

#[derive(Debug)]
struct Shared {
    identity: Mutex<TlsIdentity>,
    /// By path: status, header lines, body.
    answers: Mutex<BTreeMap<String, (u16, String, String)>>,
    asked: Mutex<Vec<String>>,
    is_over: AtomicBool,
}

/// See the module's text. One connection at a time.
#[derive(Debug)]
pub struct BundleEndpoint {
    port: u16,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl BundleEndpoint {
    pub fn start(identity: TlsIdentity) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port on loopback");
        let port = listener.local_addr().expect("an address").port();
        let shared = Arc::new(Shared {
            identity: Mutex::new(identity),
            answers: Mutex::default(),
            asked: Mutex::default(),
            is_over: AtomicBool::new(false),
        });
        let theirs = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            while let Ok((stream, _from)) = listener.accept() {
                if theirs.is_over.load(Ordering::SeqCst) {
                    return;
                }
                // Whoever does not like what it sees goes.
                let _gone = theirs.serve(stream);
            }
        });
        BundleEndpoint {
            port,
            shared,
            thread: Some(thread),
        }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn url(&self, path: &str) -> String {
        format!("https://127.0.0.1:{}{path}", self.port)
    }

    /// Shows another certificate from now on.
    pub fn present(&self, identity: TlsIdentity) {
        *self.shared.identity.lock().expect("no panic") = identity;
    }

    /// Answers so at a path from now on.
    pub fn answer(&self, path: &str, status: u16, headers: &str, body: &str) {
        let answer = (status, headers.to_owned(), body.to_owned());
        self.shared
            .answers
            .lock()
            .expect("no panic")
            .insert(path.to_owned(), answer);
    }

    /// The requests so far: the whole head of each.
    pub fn asked(&self) -> Vec<String> {
        self.shared.asked.lock().expect("no panic").clone()
    }
}

impl Shared {
    fn serve(&self, stream: TcpStream) -> std::io::Result<()> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let identity = self.identity.lock().expect("no panic").clone();
        let config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(identity.chain, identity.key)
            .expect("a certificate and its key");
        let connection = ServerConnection::new(Arc::new(config)).expect("a connection");
        let mut stream = StreamOwned::new(connection, stream);
        let head = read_head(&mut stream)?;
        let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
        self.asked.lock().expect("no panic").push(head);
        let answer = self.answers.lock().expect("no panic").get(&path).cloned();
        let (status, headers, body) = answer.unwrap_or((404, String::new(), String::new()));
        let length = body.len();
        write!(
            stream,
            "HTTP/1.1 {status} Answer\r\nContent-Length: {length}\r\n{headers}\r\n{body}"
        )?;
        stream.conn.send_close_notify();
        stream.flush()
    }
}

impl Drop for BundleEndpoint {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::SeqCst);
        let _woken = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
        if let Some(thread) = self.thread.take() {
            let _ended = thread.join();
        }
    }
}

/// Asks an endpoint on loopback for a path: the head and the body of its answer, and the TLS suite.
pub fn https_get(
    port: u16,
    config: ClientConfig,
    method: &str,
    path: &str,
) -> std::io::Result<(String, Vec<u8>, rustls::CipherSuite)> {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let name = ServerName::try_from("127.0.0.1").expect("an address");
    let connection = ClientConnection::new(Arc::new(config), name).map_err(std::io::Error::other)?;
    let mut stream = StreamOwned::new(connection, stream);
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n"
    )?;
    let head = read_head(&mut stream)?;
    let suite = stream
        .conn
        .negotiated_cipher_suite()
        .expect("a finished handshake")
        .suite();
    let mut body = Vec::new();
    // A TLS peer may leave without a word.
    let _ended = stream.read_to_end(&mut body);
    Ok((head, body, suite))
}

fn read_head(stream: &mut impl Read) -> std::io::Result<String> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    String::from_utf8(head).map_err(std::io::Error::other)
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}
