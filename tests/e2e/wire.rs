//! Raw gRPC against the program: any method by name, bytes in and bytes out.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use finial_proto::workload::X509svidResponse;
use hyper_util::rt::TokioIo;
use prost::Message as _;
use rustls::ClientConfig;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Status};

/// A certificate chain and its key, as a client presents them.
#[derive(Debug)]
pub struct Identity {
    pub chain: Vec<CertificateDer<'static>>,
    pub key: PrivateKeyDer<'static>,
}

impl Clone for Identity {
    fn clone(&self) -> Self {
        Identity {
            chain: self.chain.clone(),
            key: self.key.clone_key(),
        }
    }
}

impl Identity {
    /// From `svid.pem` and `key.pem`, as `x509 mint -write` leaves them.
    pub fn from_files(dir: &Path) -> Self {
        use rustls::pki_types::pem::PemObject;
        let chain = CertificateDer::pem_file_iter(dir.join("svid.pem"))
            .and_then(Iterator::collect)
            .expect("svid.pem holds certificates");
        let key = PrivateKeyDer::from_pem_file(dir.join("key.pem")).expect("key.pem holds a key");
        Identity { chain, key }
    }
}

/// A channel over the Unix socket at `path`.
pub async fn unix(path: PathBuf) -> anyhow::Result<Channel> {
    let connect = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    Ok(Endpoint::from_static("http://localhost")
        .connect_with_connector(connect)
        .await?)
}

/// A channel over TLS to loopback. The server is not verified: what is tested is how it treats the caller.
pub async fn tls(port: u16, identity: Option<Identity>) -> anyhow::Result<Channel> {
    let connector = tls_connector(identity)?;
    let connect = tower::service_fn(move |_: Uri| {
        let connector = connector.clone();
        async move {
            let stream = TcpStream::connect(("127.0.0.1", port)).await?;
            connector.connect(any_name()?, stream).await.map(TokioIo::new)
        }
    });
    Endpoint::from_static("http://localhost")
        .connect_with_connector(connect)
        .await
        .with_context(|| format!("connecting to 127.0.0.1:{port}"))
}

/// The same over the Unix socket at `path`.
pub async fn tls_unix(path: PathBuf, identity: Option<Identity>) -> anyhow::Result<Channel> {
    let connector = tls_connector(identity)?;
    let connect = tower::service_fn(move |_: Uri| {
        let (connector, path) = (connector.clone(), path.clone());
        async move {
            let stream = UnixStream::connect(path).await?;
            connector.connect(any_name()?, stream).await.map(TokioIo::new)
        }
    });
    Ok(Endpoint::from_static("http://localhost")
        .connect_with_connector(connect)
        .await?)
}

fn any_name() -> std::io::Result<ServerName<'static>> {
    ServerName::try_from("ignored.example").map_err(std::io::Error::other)
}

fn tls_connector(identity: Option<Identity>) -> anyhow::Result<TlsConnector> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer(provider)));
    let mut config = match identity {
        Some(identity) => config.with_client_auth_cert(identity.chain, identity.key)?,
        None => config.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
}

/// Calls `method` with one encoded message and gives the first answer or the status that ended the call.
pub async fn call(channel: &Channel, method: &str, message: Vec<u8>) -> Result<Vec<u8>, Status> {
    call_with(channel, method, message, &[]).await
}

/// The open stream of X.509-SVIDs that the agent at this socket has for this process.
pub async fn x509_stream(socket: PathBuf) -> X509Stream {
    let channel = unix(socket).await.expect("the Workload API");
    let mut grpc = Grpc::new(channel);
    grpc.ready().await.expect("a connection");
    let mut request = Request::new(Vec::new());
    let header = "true".parse().expect("an ASCII value");
    request.metadata_mut().insert("workload.spiffe.io", header);
    let path = http::uri::PathAndQuery::from_static("/SpiffeWorkloadAPI/FetchX509SVID");
    let answers = grpc.server_streaming(request, path, Raw).await;
    X509Stream(answers.expect("a stream").into_inner())
}

/// See [`x509_stream`].
#[derive(Debug)]
pub struct X509Stream(tonic::Streaming<Vec<u8>>);

impl X509Stream {
    /// What comes next, or the status that ends the stream.
    pub async fn next(&mut self) -> Result<X509svidResponse, Status> {
        let message = tokio::time::timeout(PATIENCE, self.0.message()).await;
        let message = message.expect("something comes in time")?;
        let message = message.ok_or_else(|| Status::ok("the stream ended without a status"))?;
        Ok(X509svidResponse::decode(message.as_slice()).expect("an answer of the Workload API"))
    }
}

/// Longer than anything takes that is waited for here.
const PATIENCE: Duration = Duration::from_secs(120);

/// [`call`] with metadata.
pub async fn call_with(
    channel: &Channel,
    method: &str,
    message: Vec<u8>,
    metadata: &[(&'static str, &str)],
) -> Result<Vec<u8>, Status> {
    let mut grpc = Grpc::new(channel.clone());
    grpc.ready()
        .await
        .map_err(|error| Status::unknown(format!("not ready: {error}")))?;
    let path = method.parse().expect("a method is a path");
    let mut request = Request::new(message);
    request.set_timeout(std::time::Duration::from_secs(20));
    for (name, value) in metadata {
        request
            .metadata_mut()
            .append(*name, value.parse().expect("an ASCII value"));
    }
    let mut answers = grpc.server_streaming(request, path, Raw).await?.into_inner();
    answers
        .message()
        .await?
        .ok_or_else(|| Status::ok("the call ended without a message"))
}

/// Passes messages through as bytes.
#[derive(Debug, Default, Clone, Copy)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Raw;
    type Decoder = Raw;

    fn encoder(&mut self) -> Raw {
        Raw
    }

    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        use bytes::BufMut;
        buffer.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        use bytes::Buf;
        Ok(Some(buffer.copy_to_bytes(buffer.remaining()).to_vec()))
    }
}

#[derive(Debug)]
struct AnyServer(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            cert,
            signed,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            cert,
            signed,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
