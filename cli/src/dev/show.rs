//! SVIDs as readable text.

use std::io::Write;

use anyhow::Context;
use finial_identity::command::utc;
use finial_identity::jwt;
use finial_identity::spiffe_id::SpiffeId;
use finial_identity::x509::Certificate;
use finial_proto::workload::X509svid;
use time::OffsetDateTime;

use super::directory::Directory;

/// The certificate as PEM and in readable form. The private key is not printed.
pub fn x509(svid: &X509svid) -> anyhow::Result<()> {
    let chain = Certificate::parse_many(&svid.x509_svid).context("read the X.509-SVID")?;
    let leaf = chain.first().context("the X.509-SVID is empty")?;
    let authorities = Certificate::parse_many(&svid.bundle).context("read the bundle")?;
    let mut text = String::from("\nX.509-SVID\n\n");
    for certificate in &chain {
        text.push_str(&certificate.to_pem());
    }
    let mut line = |label: &str, value: String| text.push_str(&format!("  {label:<14} {value}\n"));
    line("SPIFFE ID", svid.spiffe_id.clone());
    line("subject", leaf.subject_text());
    line("serial", leaf.serial_hex());
    line("valid from", utc(leaf.not_before().unix_timestamp()));
    line("valid until", utc(leaf.not_after().unix_timestamp()));
    line("signed by", leaf.authority_key_id().map(hex).unwrap_or_default());
    line("bundle", format!("{} X.509 authority", authorities.len()));
    line(
        "private key",
        format!(
            "{} bytes of PKCS#8, made at the agent, not printed",
            svid.x509_svid_key.len()
        ),
    );
    print(&text)
}

/// The token whole, and its header and claims decoded.
pub fn jwt(token: &str, now: OffsetDateTime) -> anyhow::Result<()> {
    let decoded = jwt::parse_unverified(token).context("read the JWT-SVID")?;
    let claims = serde_json::to_string_pretty(&decoded.claims).context("print the claims")?;
    let lifetime = (decoded.expires_at - now).whole_seconds();
    let mut text = format!("\nJWT-SVID\n\n{token}\n\n");
    text.push_str(&format!(
        "  {:<14} alg {}, kid {}\n",
        "header", decoded.algorithm, decoded.kid
    ));
    text.push_str(&format!("  {:<14} in {lifetime} s\n", "expires"));
    for (index, part) in claims.lines().enumerate() {
        let label = if index == 0 { "claims" } else { "" };
        text.push_str(&format!("  {label:<14} {part}\n"));
    }
    text.push('\n');
    print(&text)
}

/// What to type next.
pub fn next_steps(directory: &Directory, node: &SpiffeId) -> anyhow::Result<()> {
    let server = directory.server_socket();
    let agent = directory.agent_socket();
    let (server, agent) = (server.display(), agent.display());
    let domain = node.trust_domain();
    print(&format!(
        "Server and agent keep running. In another terminal:\n\n\
         \x20 export SPIFFE_ENDPOINT_SOCKET=unix://{agent}   # for programs with a SPIFFE library\n\
         \x20 finial agent api fetch x509 -socketPath {agent} -write .\n\
         \x20 finial agent api fetch jwt -socketPath {agent} -audience my-service\n\
         \x20 finial agent api watch -socketPath {agent}\n\
         \x20 finial server entry show -socketPath {server}\n\
         \x20 finial server entry create -socketPath {server} \\\n\
         \x20     -parentID {node} -spiffeID spiffe://{domain}/my-service -selector unix:uid:1000\n\n\
         Stop with Ctrl-C; the next start in this directory carries on.\n\n"
    ))
}

fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .context("write to standard output")
}

fn hex(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(bytes)
}
