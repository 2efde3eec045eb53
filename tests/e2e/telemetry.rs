//! Metrics: both programs are scraped after real calls, and every name of SPIRE's dashboards is there.

use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use finial_identity::bundle::Bundle;
use finial_identity::key::PrivateKey;
use finial_identity::peer::{self, PeerPolicy, SharedBundles};
use finial_identity::process::Clock;
use finial_identity::spiffe_id::{SpiffeId, TrustDomain};
use finial_identity::x509::{Certificate, X509Svid};
use finial_proto::envoy::service::discovery::v3::DiscoveryRequest;
use finial_proto::envoy::service::secret::v3::secret_discovery_service_client::SecretDiscoveryServiceClient;
use finial_proto::spire::api::server::agent::v1::RenewAgentRequest;
use finial_proto::spire::api::server::agent::v1::agent_client::AgentClient;
use finial_proto::spire::api::server::entry::v1::GetAuthorizedEntriesRequest;
use finial_proto::spire::api::server::entry::v1::entry_client::EntryClient;
use finial_proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use finial_proto::workload::{JwtBundlesRequest, X509BundlesRequest};
use finial_tests::{Entry, Stack, StackOptions, free_port, wait_for, wait_until};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use rustls_pki_types::pem::PemObject;
use tokio::net::UnixStream;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};

use crate::scrape::{Scraped, get, scrape};

const LIMIT: Duration = Duration::from_secs(60);

/// Names of the dashboards that SPIRE ships, for the server, and the least that a scrape below must show.
const SERVER: &[(&str, f64)] = &[
    ("spire_server_started", 1.0),
    ("spire_server_uptime_in_ms", 1.0),
    ("spire_server_runtime_alloc_bytes", 100_000.0),
    ("spire_server_runtime_heap_objects", 0.0),
    ("spire_server_rpc_agent_v1_agent_attest_agent", 1.0),
    ("spire_server_rpc_agent_v1_agent_renew_agent", 1.0),
    ("spire_server_rpc_bundle_v1_bundle_get_bundle", 1.0),
    (
        "spire_server_rpc_bundle_v1_bundle_get_bundle_elapsed_time_count",
        1.0,
    ),
    ("spire_server_rpc_entry_v1_entry_get_authorized_entries", 1.0),
    (
        "spire_server_rpc_entry_v1_entry_get_authorized_entries_elapsed_time_count",
        1.0,
    ),
    ("spire_server_rpc_entry_v1_entry_list_entries", 1.0),
    ("spire_server_rpc_entry_v1_entry_batch_create_entry", 2.0),
    ("spire_server_rpc_entry_v1_entry_batch_delete_entry", 1.0),
    (
        "spire_server_rpc_svid_v1_svid_batch_new_x509svid_elapsed_time_count",
        1.0,
    ),
    (
        "spire_server_rpc_svid_v1_svid_new_jwtsvid_elapsed_time_count",
        1.0,
    ),
    ("spire_server_entry_cache_reload_elapsed_time_count", 1.0),
    (
        "spire_server_datastore_registration_entry_list_elapsed_time_count",
        1.0,
    ),
    // Not of the dashboards.
    ("spire_server_server_ca_sign_x509_svid", 2.0),
    ("spire_server_server_ca_sign_jwt_svid", 1.0),
    ("spire_server_ca_manager_x509_ca_prepare", 1.0),
    ("spire_server_ca_manager_x509_ca_activate", 1.0),
    ("spire_server_manager_x509_ca_rotate_ttl", 80_000.0),
    ("spire_server_node_attestation", 1.0),
    ("spire_server_entry_entries_by_entryid_cache_count", 1.0),
    ("spire_server_node_agents_by_id_cache_count", 1.0),
    ("spire_server_datastore_registration_entry_create", 2.0),
];

/// The same for the agent.
const AGENT: &[(&str, f64)] = &[
    ("spire_agent_started", 1.0),
    ("spire_agent_runtime_alloc_bytes", 100_000.0),
    ("spire_agent_runtime_heap_objects", 0.0),
    ("spire_agent_manager_sync_fetch_entries_updates", 1.0),
    (
        "spire_agent_manager_sync_fetch_entries_updates_elapsed_time_count",
        1.0,
    ),
    ("spire_agent_manager_sync_fetch_svids_updates", 1.0),
    (
        "spire_agent_manager_sync_fetch_svids_updates_elapsed_time_count",
        1.0,
    ),
    (
        "spire_agent_workload_api_workload_attestation_elapsed_time_count",
        1.0,
    ),
    ("spire_agent_rpc_workload_api_fetch_x509svid", 1.0),
    (
        "spire_agent_rpc_workload_api_fetch_x509svid_elapsed_time_count",
        1.0,
    ),
    ("spire_agent_rpc_workload_api_fetch_jwtsvid", 1.0),
    (
        "spire_agent_rpc_workload_api_fetch_jwtsvid_elapsed_time_count",
        1.0,
    ),
    ("spire_agent_rpc_workload_api_fetch_x509_bundles", 1.0),
    ("spire_agent_rpc_workload_api_fetch_jwt_bundles", 1.0),
    ("spire_agent_sds_api_connection", 1.0),
    ("spire_agent_sds_api_connections", 0.0),
    // Not of the dashboards.
    ("spire_agent_bootstrapped", 1.0),
    ("spire_agent_bootstrap_seconds", 0.0),
    ("spire_agent_bootstrap_attempts", 1.0),
    ("spire_agent_lru_cache_entry_add", 1.0),
    ("spire_agent_lru_cache_entry_remove", 0.0),
    ("spire_agent_lru_cache_entry_update", 0.0),
    ("spire_agent_node_attestor_new_svid", 1.0),
    ("spire_agent_workload_api_connection", 3.0),
    ("spire_agent_workload_api_workload_attestor", 1.0),
    ("spire_agent_lru_cache_record_map_size", 1.0),
    ("spire_agent_lru_cache_svid_map_size", 1.0),
    ("spire_agent_jwt_svid_cache_size", 1.0),
    ("spire_agent_rpc_sds_v3_fetch_secrets", 1.0),
];

struct Ports {
    server: u16,
    agent: u16,
}

/// A stack that Prometheus can scrape, with more lines in the `telemetry` blocks.
fn watched(server: &str, agent: &str) -> (Stack, Ports) {
    let ports = Ports {
        server: free_port(),
        agent: free_port(),
    };
    let block = |port: u16, more: &str| {
        format!("telemetry {{\n Prometheus {{ host = \"127.0.0.1\" port = {port} }}\n {more}\n}}")
    };
    let stack = Stack::start(StackOptions {
        server_blocks: block(ports.server, server),
        agent_blocks: block(ports.agent, agent),
        ..StackOptions::default()
    });
    (stack, ports)
}

#[test]
fn every_name_of_the_dashboards_is_there_after_real_calls() {
    let (stack, ports) = watched("", "EnableTrustDomainLabel = true\n EnableHostnameLabel = false");
    stack.create_entry(&Entry::for_me("/web"));
    let gone = stack.create_entry(&Entry::for_me("/gone").with(&["-entryID", "gone"]));
    stack.wait_identity("/web");
    stack.delete_entry(&gone);
    stack.server_cli_ok(&["entry", "show"]);
    stack.server_cli_ok(&["bundle", "show"]);
    stack.agent_cli_ok(&["api", "fetch", "jwt", "-audience", "db"]);
    run_async(other_calls(&stack));

    let server = shown(ports.server, SERVER);
    assert_eq!(server.total("spire_server_started"), Some(1.0));
    assert_eq!(
        server.value(
            "spire_server_rpc_agent_v1_agent_renew_agent",
            &[("status", "PermissionDenied")]
        ),
        Some(1.0),
        "the private socket is no agent"
    );
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").expect("a host name");
    let labels = [("host", host.trim()), ("trust_domain_id", "example.org")];
    assert_eq!(server.value("spire_server_started", &labels), Some(1.0));
    let attested = [("attestor", "join_token"), ("status", "OK")];
    assert_eq!(
        server.value("spire_server_node_attestation", &attested),
        Some(1.0)
    );

    let agent = shown(ports.agent, AGENT);
    let state = |name: &str| agent.value("spire_agent_node_state", &[("state", name)]);
    assert_eq!((state("serving"), state("degraded")), (Some(1.0), Some(0.0)));
    let labels = [("trust_domain", "example.org"), ("svid_type", "x509")];
    assert_eq!(
        agent.value("spire_agent_lru_cache_record_map_size", &labels),
        Some(1.0)
    );
    assert!(!agent.series().any(|series| series.contains("host=")));
    assert_eq!(
        agent.kind("spire_agent_rpc_workload_api_fetch_jwtsvid_elapsed_time"),
        Some("summary")
    );
    let time = "spire_agent_rpc_workload_api_fetch_jwtsvid_elapsed_time";
    let median = agent.value(time, &[("quantile", "0.5"), ("status", "OK")]);
    assert!(
        median.expect("a median") > 0.0 && median < Some(60_000.0),
        "{median:?}"
    );
    let health = "spire_agent_rpc_health_check";
    assert!(agent.total(health).expect("the health check of the harness") >= 1.0);
}

/// Every metric that a scrape shows is in the documentation.
#[test]
fn what_is_shown_is_documented() {
    let (stack, ports) = watched("", "");
    stack.create_entry(&Entry::for_me("/web"));
    stack.wait_identity("/web");
    let page =
        std::fs::read_to_string(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/telemetry.md"))
            .expect("the page about telemetry");
    for (port, prefix) in [(ports.server, "spire_server_"), (ports.agent, "spire_agent_")] {
        for name in scrape(port).expect("a scrape").names() {
            let bare = name.strip_prefix(prefix).expect("the prefix");
            let bare = bare.strip_suffix("_elapsed_time").unwrap_or(bare);
            let documented = bare.starts_with("rpc_") || page.contains(&format!("`{bare}`"));
            assert!(documented, "docs/telemetry.md does not tell of {bare}");
        }
    }
}

#[test]
fn prefix_and_filters_are_the_operators() {
    let (_stack, ports) = watched(
        "MetricPrefix = \"corp\"\n BlockedPrefixes = [\"corp.datastore\"]\n BlockedLabels = [\"status\"]",
        "",
    );
    let server = scrape(ports.server).expect("a scrape");
    assert!(server.names().all(|name| name.starts_with("corp_")));
    assert!(!server.names().any(|name| name.starts_with("corp_datastore")));
    assert!(!server.series().any(|series| series.contains("status=")));
    assert!(server.total("corp_entry_cache_reload").expect("reloads") >= 1.0);
}

#[test]
fn only_an_authorized_svid_may_scrape_over_tls_with_the_own_svid() {
    let port = free_port();
    let tls = r#"tls { use_spire_svid = true authorized_spiffe_ids = ["spiffe://example.org/prometheus"] }"#;
    let stack = Stack::start(StackOptions {
        agent_blocks: format!("telemetry {{ Prometheus {{ host = \"127.0.0.1\" port = {port} {tls} }} }}"),
        ..StackOptions::default()
    });
    let fetch = |path: &str| {
        let id = stack.create_entry(&Entry::for_me(path));
        wait_until("the one identity", LIMIT, || {
            let shown = stack.agent_cli(&["api", "fetch", "x509"]).stdout;
            shown.matches("SPIFFE ID:").count() == 1 && shown.contains(path)
        });
        let dir = stack.dir().join(path.trim_start_matches('/'));
        std::fs::create_dir(&dir).expect("a directory");
        stack.agent_cli_ok(&["api", "fetch", "x509", "-write", &dir.display().to_string()]);
        stack.delete_entry(&id);
        svid_in(&dir)
    };
    let (stranger, _bundle) = fetch("/stranger");
    let (prometheus, bundle) = fetch("/prometheus");
    assert!(scrape_tls(port, Some(stranger), &bundle, &stack).is_err());
    assert!(scrape_tls(port, None, &bundle, &stack).is_err());
    let scraped = scrape_tls(port, Some(prometheus), &bundle, &stack).expect("a scrape");
    assert_eq!(scraped.total("spire_agent_started"), Some(1.0));
    assert!(scrape(port).is_err(), "not without TLS");
}

#[test]
fn why_an_agent_is_degraded_is_shown_for_as_long_as_it_is() {
    let (mut stack, ports) = watched("", "");
    let reasons = [
        "attestation",
        "trust",
        "evicted",
        "renewal",
        "server",
        "disk",
        "pods",
    ];
    let wait = |degraded: &[&str]| {
        wait_for("the reasons to be degraded", LIMIT, || {
            let scraped = scrape(ports.agent)?;
            for reason in reasons {
                let value = scraped.value("spire_agent_node_degraded", &[("reason", reason)]);
                let wanted = Some(f64::from(u8::from(degraded.contains(&reason))));
                anyhow::ensure!(value == wanted, "{reason}: {value:?}");
            }
            Ok(())
        });
    };
    wait(&[]);
    assert!(stack.server().terminate().success());
    wait(&["server"]);
    stack.start_server();
    wait(&[]);
}

/// Scrapes until all of the names are there with what they must have at least.
fn shown(port: u16, wanted: &[(&str, f64)]) -> Scraped {
    wait_for("all names of the dashboards", LIMIT, || {
        let scraped = scrape(port)?;
        for (name, least) in wanted {
            let value = scraped.total(name);
            anyhow::ensure!(
                value >= Some(*least),
                "{name} is {value:?}, at least {least} was expected"
            );
        }
        Ok(scraped)
    })
}

/// Calls that no command makes.
async fn other_calls(stack: &Stack) {
    let server = unix(stack.server_socket()).await;
    let authorized = GetAuthorizedEntriesRequest { output_mask: None };
    let refused = EntryClient::new(server.clone())
        .get_authorized_entries(authorized)
        .await;
    assert!(refused.is_err());
    let renewal = RenewAgentRequest { params: None };
    assert!(AgentClient::new(server).renew_agent(renewal).await.is_err());

    let agent = unix(stack.agent_socket()).await;
    let secured = |mut request: tonic::Request<()>| {
        let value = MetadataValue::from_static("true");
        request.metadata_mut().insert("workload.spiffe.io", value);
        Ok(request)
    };
    let mut workload = SpiffeWorkloadApiClient::with_interceptor(agent.clone(), secured);
    let x509 = workload
        .fetch_x509_bundles(X509BundlesRequest {})
        .await
        .expect("a stream");
    x509.into_inner().message().await.expect("a message");
    let jwt = workload
        .fetch_jwt_bundles(JwtBundlesRequest {})
        .await
        .expect("a stream");
    jwt.into_inner().message().await.expect("a message");
    let _answered = SecretDiscoveryServiceClient::new(agent)
        .fetch_secrets(DiscoveryRequest::default())
        .await;
}

async fn unix(path: PathBuf) -> Channel {
    let connector = tower::service_fn(move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://localhost")
        .connect_with_connector(connector)
        .await
        .expect("somebody listens")
}

fn run_async(work: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(work);
}

/// What `api fetch x509 -write` left in a directory.
fn svid_in(dir: &std::path::Path) -> (Arc<X509Svid>, Bundle) {
    let read = |name: &str| std::fs::read_to_string(dir.join(name)).expect("a file that was written");
    let chain = Certificate::from_pem(&read("svid.0.pem")).expect("certificates");
    let key_pem = read("svid.0.key");
    let key_der = rustls_pki_types::PrivatePkcs8KeyDer::from_pem_slice(key_pem.as_bytes()).expect("a key");
    let key = PrivateKey::from_pkcs8_der(key_der.secret_pkcs8_der()).expect("a key");
    let trust_domain = TrustDomain::parse("example.org").expect("a trust domain");
    let bundle = Bundle::parse_pem(trust_domain, &read("bundle.0.pem")).expect("a bundle");
    (
        Arc::new(X509Svid::new(chain, Arc::new(key)).expect("an SVID")),
        bundle,
    )
}

fn scrape_tls(
    port: u16,
    svid: Option<Arc<X509Svid>>,
    bundle: &Bundle,
    stack: &Stack,
) -> anyhow::Result<Scraped> {
    let authorities: Arc<[Certificate]> = bundle.x509_certificates().into();
    let bundles = SharedBundles::fixed([(bundle.trust_domain.clone(), authorities)].into());
    let agent = SpiffeId::parse(&stack.agent_id())?;
    let verifier = peer::server_verifier(Arc::new(bundles), PeerPolicy::OneOf(vec![agent]), Clock::system());
    let mut config = peer::client_config(verifier, svid.as_deref(), Clock::system());
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let name = ServerName::try_from("localhost")?;
    let mut tls = rustls::ClientConnection::new(Arc::new(config), name)?;
    let mut tcp = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port)))?;
    get(&mut rustls::Stream::new(&mut tls, &mut tcp))
}
