//! A workload in Rust, over the unchanged `spiffe` and `spiffe-rustls` crates.
//!
//! Without arguments it answers commands, see `../session.rs`; `watch COUNT` prints updates, and
//! `serve PORT | dial PORT EXPECTED_ID SECONDS` are for mutual TLS. The Workload API's address is taken from `SPIFFE_ENDPOINT_SOCKET`.

mod commands;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use finial_identity::x509::Certificate;
use rustls::pki_types::ServerName;
use spiffe::X509Source;
use spiffe_rustls::{authorizer, mtls_client, mtls_server};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => return commands::answer().await,
        ["watch", count] => watch(count.parse()?).await?,
        ["serve", port] => serve(port.parse()?).await?,
        ["dial", port, expected, seconds] => dial(port.parse()?, expected, seconds.parse()?).await?,
        _ => bail!("unknown command {args:?}"),
    }
    println!("done");
    Ok(())
}

async fn watch(count: usize) -> anyhow::Result<()> {
    let source = X509Source::new().await?;
    let mut updates = source.updated();
    for seen in 1..=count {
        let svid = source.svid()?;
        let leaf = Certificate::parse(svid.leaf().as_bytes())?;
        let names = leaf.dns_names().join(",");
        println!("update {seen} {} {} {names}", svid.spiffe_id(), leaf.serial_hex());
        if seen < count {
            tokio::time::timeout(Duration::from_secs(180), updates.changed())
                .await
                .context("no update came")??;
        }
    }
    Ok(())
}

async fn serve(port: u16) -> anyhow::Result<()> {
    let source = X509Source::new().await?;
    let domain = source.svid()?.spiffe_id().trust_domain().to_string();
    let config = mtls_server(source)
        .authorize(authorizer::trust_domains([domain])?)
        .build()?;
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    println!("listening {port}");
    loop {
        let (stream, _) = listener.accept().await?;
        if let Err(error) = echo(&acceptor, stream).await {
            println!("connection failed: {error:#}");
        }
    }
}

async fn echo(acceptor: &TlsAcceptor, stream: TcpStream) -> anyhow::Result<()> {
    let mut stream = acceptor.accept(stream).await?;
    let mut buffer = [0; 100];
    let read = stream.read(&mut buffer).await?;
    stream.write_all(b"echo ").await?;
    stream.write_all(&buffer[..read]).await?;
    stream.shutdown().await?;
    Ok(())
}

async fn dial(port: u16, expected: &str, seconds: u64) -> anyhow::Result<()> {
    let source = X509Source::new().await?;
    let config = mtls_client(source.clone())
        .authorize(authorizer::exact([expected])?)
        .build()?;
    let connector = TlsConnector::from(Arc::new(config));
    let until = Instant::now() + Duration::from_secs(seconds);
    let (mut handshakes, mut certificates) = (0, BTreeSet::new());
    while Instant::now() < until {
        let stream = TcpStream::connect(("127.0.0.1", port)).await?;
        let mut stream = connector
            .connect(ServerName::try_from("ignored.example")?, stream)
            .await?;
        stream.write_all(b"ping").await?;
        let mut answer = Vec::new();
        while answer.len() < b"echo ping".len() && stream.read_buf(&mut answer).await? > 0 {}
        if answer != b"echo ping" {
            bail!("unexpected answer {answer:?}");
        }
        handshakes += 1;
        certificates.insert(digest(source.svid()?.leaf().as_bytes()));
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    println!("handshakes {handshakes} certificates {}", certificates.len());
    Ok(())
}

/// Tells two certificates apart.
fn digest(der: &[u8]) -> String {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    der.hash(&mut hasher);
    format!("{:x}", hasher.finish())
}
