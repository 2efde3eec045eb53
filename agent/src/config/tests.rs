mod mistakes;

use super::*;

const MINIMAL: &str = r#"
    agent {
        trust_domain = "example.org"
        server_address = "spire-server"
        server_port = "8081"
        trust_bundle_path = "/conf/bundle.pem"
    }
    plugins {
        KeyManager "memory" { plugin_data {} }
        NodeAttestor "join_token" {}
        WorkloadAttestor "unix" {}
    }
"#;

fn parse(text: &str) -> Result<Config, String> {
    parse_with(text, &Flags::default())
}

fn parse_with(text: &str, flags: &Flags) -> Result<Config, String> {
    Config::parse(text, Path::new("agent.conf"), flags).map_err(|error| error.to_string())
}

/// The minimal file with more in its `agent` block.
fn with(more: &str) -> String {
    MINIMAL.replacen("agent {", &format!("agent {{\n{more}\n"), 1)
}

#[test]
fn a_minimal_file_gives_spires_defaults() {
    let config = parse(MINIMAL).unwrap();
    let essentials = config.essentials();
    assert_eq!(essentials.trust_domain.as_str(), "example.org");
    assert_eq!(
        (essentials.server_address.as_str(), essentials.server_port),
        ("spire-server", 8081)
    );
    let expected = BootstrapSource::File {
        path: "/conf/bundle.pem".into(),
        format: BundleFormat::Pem,
    };
    assert_eq!(essentials.bootstrap, expected);
    assert_eq!(essentials.data_dir, Path::new("."));
    assert_eq!(essentials.socket_path, Path::new(DEFAULT_SOCKET_PATH));
    assert_eq!((&essentials.keys, &essentials.join_token), (&Keys::Memory, &None));
    assert_eq!(config.log(), &LogSettings::default());
    assert_eq!(config.workload_key_type(), KeyType::EcP256);
    assert_eq!(
        (
            config.x509_svid_cache_max_size(),
            config.jwt_svid_cache_max_size()
        ),
        (1000, 1000)
    );
    assert_eq!(
        (config.sync_interval(), config.jwt_svid_cache_hit_timeout()),
        (Duration::from_secs(5), None)
    );
    assert!(!config.allow_unauthenticated_verifiers() && !config.disable_workload_api());
    assert_eq!(config.workload_attestors().unix, Some(UnixSettings::default()));
    assert!(config.admin().is_none());
    assert!(config.health_checks().is_none() && config.allowed_foreign_jwt_claims().is_empty());
    assert_eq!(config.log_selectors(), [""; 0]);
    assert_eq!(config.warnings(), [""; 0]);
}

#[test]
fn every_served_key_has_its_effect() {
    let text = r#"
        agent {
            trust_domain = "spiffe://example.org" server_address = "a" server_port = 1
            data_dir = "/d" socket_path = "/s/api" insecure_bootstrap = true join_token = "secret-token"
            log_selectors = ["unix", "k8s:ns"]
            log_file = "/l" log_level = "DEBUG" log_format = "json" log_source_location = true
            workload_x509_svid_key_type = "rsa-2048" availability_target = "24h" x509_svid_cache_max_size = 5 jwt_svid_cache_max_size = 6
            admin_socket_path = "/p/a" authorized_delegates = ["spiffe://example.org/delegate"]
            allow_unauthenticated_verifiers = true allowed_foreign_jwt_claims = ["a", "b"] disable_workload_api = true
            experimental { sync_interval = "30s" jwt_svid_cache_hit_timeout = "6s" }
        }
        plugins {
            KeyManager "disk" { plugin_data { directory = "/k" } }
            NodeAttestor "join_token" { plugin_data {} }
            WorkloadAttestor "unix" { plugin_data { discover_workload_path = true workload_size_limit = -1 } }
        }
        health_checks { listener_enabled = true bind_address = "0.0.0.0" bind_port = "8080" live_path = "/l" ready_path = "/r" }
    "#;
    let config = parse(text).unwrap();
    let essentials = config.essentials();
    assert_eq!(essentials.bootstrap, BootstrapSource::Insecure);
    assert_eq!(
        (essentials.data_dir.as_path(), essentials.socket_path.as_path()),
        (Path::new("/d"), Path::new("/s/api"))
    );
    assert_eq!(essentials.keys, Keys::Disk("/k".into()));
    assert_eq!(
        essentials.join_token,
        Some(JoinToken::Given("secret-token".to_owned().into()))
    );
    assert!(!format!("{config:?}").contains("secret-token"));
    assert_eq!(config.log().file.as_deref(), Some(Path::new("/l")));
    assert_eq!(config.log().level, crate::telemetry::LogLevel::Debug);
    assert_eq!(config.log().format, crate::telemetry::LogFormat::Json);
    assert_eq!(config.log_selectors(), ["unix", "k8s:ns"]);
    assert_eq!(config.workload_key_type(), KeyType::Rsa2048);
    let day = Duration::from_secs(24 * 3600);
    assert_eq!(config.availability_target(), Some(day));
    assert_eq!(
        (
            config.x509_svid_cache_max_size(),
            config.jwt_svid_cache_max_size()
        ),
        (5, 6)
    );
    assert_eq!(config.sync_interval(), Duration::from_secs(30));
    assert_eq!(config.jwt_svid_cache_hit_timeout(), Some(Duration::from_secs(6)));
    assert_eq!(config.allowed_foreign_jwt_claims(), ["a", "b"]);
    assert!(config.allow_unauthenticated_verifiers() && config.disable_workload_api());
    let unix = UnixSettings {
        discover_workload_path: true,
        workload_size_limit: -1,
    };
    assert_eq!(config.workload_attestors().unix, Some(unix));
    let admin = config.admin().unwrap();
    assert_eq!(admin.socket_path, Path::new("/p/a"));
    let delegates: Vec<_> = admin.authorized_delegates.iter().map(|id| id.as_str()).collect();
    assert_eq!(delegates, ["spiffe://example.org/delegate"]);
    let health = config.health_checks().unwrap();
    assert_eq!((health.address.as_str(), health.port), ("0.0.0.0", 8080));
    assert_eq!(
        (health.live_path.as_str(), health.ready_path.as_str()),
        ("/l", "/r")
    );
    assert!(
        matches!(config.warnings(), [only] if only.contains("insecure_bootstrap")),
        "{:?}",
        config.warnings()
    );
}

#[test]
fn flags_override_the_file_and_supply_what_it_lacks() {
    let text = MINIMAL.replace("trust_domain = \"example.org\"", "").replace(
        "server_port = \"8081\"",
        "join_token_file = \"/t\" log_level = \"ERROR\"",
    );
    let flags = Flags {
        trust_domain: Some("other.org".to_owned()),
        server_port: Some(9),
        server_address: Some("host".to_owned()),
        join_token: Some(JoinToken::Given("x".to_owned().into())),
        log_level: Some("WARN".to_owned()),
        socket_path: Some("/run/a.sock".to_owned()),
        data_dir: Some(String::new()),
        trust_bundle_format: Some("spiffe".to_owned()),
        ..Flags::default()
    };
    let config = parse_with(&text, &flags).unwrap();
    let essentials = config.essentials();
    assert_eq!(essentials.trust_domain.as_str(), "other.org");
    assert_eq!(
        (essentials.server_address.as_str(), essentials.server_port),
        ("host", 9)
    );
    assert_eq!(
        essentials.join_token,
        Some(JoinToken::Given("x".to_owned().into()))
    );
    assert_eq!(config.log().level, crate::telemetry::LogLevel::Warn);
    assert_eq!(essentials.socket_path, Path::new("/run/a.sock"));
    assert_eq!(essentials.data_dir, Path::new("."), "an empty flag is not given");
    assert!(matches!(
        essentials.bootstrap,
        BootstrapSource::File {
            format: BundleFormat::Spiffe,
            ..
        }
    ));
}

#[test]
fn the_broker_api_is_off_unless_there_is_a_block_that_says_who_may_call() {
    assert_eq!(parse(MINIMAL).unwrap().broker(), None);
    let pid = "type.googleapis.com/spiffe.broker.WorkloadPIDReference";
    let config = parse(&with(&format!(
        r#"experimental {{ broker {{
            socket_path = "/run/broker/b.sock"
            bind_address = "127.0.0.1:8443"
            brokers = [
                {{ id = "spiffe://example.org/a", allowed_reference_types = [ {{ type_url = "{pid}" }} ] }},
                {{
                    id = "spiffe://other.org/b"
                    allowed_reference_types = [ {{ type_url = "*", allow_over_tcp = true }} ]
                }},
            ]
        }} }}"#
    )))
    .unwrap();
    let broker = config.broker().unwrap();
    assert_eq!(
        broker.socket_path.as_deref(),
        Some(Path::new("/run/broker/b.sock"))
    );
    let address = broker.bind_address.as_ref().unwrap();
    assert_eq!((address.host.as_deref(), address.port), (Some("127.0.0.1"), 8443));
    let allowed: Vec<_> = broker
        .brokers
        .iter()
        .map(|one| {
            let [reference] = &one.references[..] else {
                panic!("{one:?}")
            };
            (
                one.id.as_str(),
                reference.type_url.as_deref(),
                reference.allow_over_tcp,
            )
        })
        .collect();
    assert_eq!(
        allowed,
        [
            ("spiffe://example.org/a", Some(pid), false),
            ("spiffe://other.org/b", None, true)
        ]
    );
    assert!(config.warnings().is_empty(), "{:?}", config.warnings());
    let config = parse(&with(
        r#"experimental { broker { bind_address = ":1" brokers = [
            { id = "spiffe://example.org/a", allowed_reference_types = [ { type_url = "a/b.C" } ] },
        ] } }"#,
    ))
    .unwrap();
    assert!(config.warnings()[0].contains("a/b.C"), "{:?}", config.warnings());
}

#[test]
fn secret_discovery_is_on_by_default_and_its_names_can_be_chosen() {
    assert_eq!(parse(MINIMAL).unwrap().sds(), Some(&SdsSettings::default()));
    let config = parse(&with(
        "sds { default_svid_name = \"a\" default_bundle_name = \"\" default_all_bundles_name = \"c\" \
         disable_spiffe_cert_validation = true }",
    ))
    .unwrap();
    let expected = SdsSettings {
        default_svid_name: "a".to_owned(),
        default_bundle_name: "ROOTCA".to_owned(),
        default_all_bundles_name: "c".to_owned(),
        disable_spiffe_cert_validation: true,
    };
    assert_eq!((config.sds(), config.warnings()), (Some(&expected), &[][..]));
    assert_eq!(parse(&with("disable_sds_api = true")).unwrap().sds(), None);
    let flags = Flags {
        disable_sds_api: Some(true),
        ..Flags::default()
    };
    let off = Config::parse(MINIMAL, Path::new("agent.conf"), &flags).unwrap();
    assert_eq!(off.sds(), None);
    for names in [
        "default_bundle_name = \"default\"",
        "default_all_bundles_name = \"ROOTCA\"",
    ] {
        let error = parse(&with(&format!("sds {{ {names} }}"))).unwrap_err();
        assert!(error.contains(names.split(' ').next().unwrap()), "{error}");
    }
    assert!(
        parse(&with("sds { default_svid = \"a\" }")).is_err(),
        "unknown key"
    );
}

#[test]
fn json_and_yaml_say_the_same() {
    let json = r#"{"agent": {"trust_domain": "example.org", "server_address": "a", "server_port": 1, "insecure_bootstrap": true},
        "plugins": {"KeyManager": {"memory": {}}, "NodeAttestor": {"join_token": {}}, "WorkloadAttestor": {"unix": {"plugin_data": {"discover_workload_path": true}}}}}"#;
    let yaml = "agent:\n  trust_domain: example.org\n  server_address: a\n  server_port: 1\n  insecure_bootstrap: true\n\
        plugins:\n  KeyManager:\n    memory:\n  NodeAttestor:\n    join_token:\n  WorkloadAttestor:\n    unix:\n      plugin_data:\n        discover_workload_path: true\n";
    for (text, path) in [(json, "a.json"), (yaml, "a.yaml")] {
        let config = Config::parse(text, Path::new(path), &Flags::default()).unwrap();
        assert!(
            config.workload_attestors().unix.unwrap().discover_workload_path,
            "{path}"
        );
    }
}

#[test]
fn wit_svids_are_off_unless_the_flag_is_set() {
    assert!(!parse(MINIMAL).unwrap().features().wit_svids);
    let text = with("experimental { feature_flags = [\"wit-svid\"] }");
    assert!(parse(&text).unwrap().features().wit_svids);
}
