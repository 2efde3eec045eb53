//! What is refused, and what is accepted with a warning.

use super::*;

#[test]
fn all_mistakes_are_told_at_once() {
    let error = parse("agent { server_port = 0 log_level = \"loud\" sokcet_path = \"x\" }\nplugins { KeyManager \"memory\" {} KeyManager \"disk\" {} }").unwrap_err();
    for part in [
        "unknown configuration detected",
        "trust_domain",
        "server_address",
        "server_port",
        "trust_bundle_path",
        "loud",
        "did you mean `socket_path`?",
        "exactly one KeyManager is required, found 2",
        "exactly one NodeAttestor is required, found 0",
        "at least one WorkloadAttestor",
    ] {
        assert!(error.contains(part), "{part} in {error}");
    }
    assert!(parse("server {}").unwrap_err().contains("agent"));
}

#[test]
fn exactly_one_bootstrap_source_and_one_token() {
    let error = parse(&with("insecure_bootstrap = true")).unwrap_err();
    assert!(
        error.contains("only one of trust_bundle_path and insecure_bootstrap"),
        "{error}"
    );
    let error = parse(&with("join_token = \"a\"\njoin_token_file = \"/t\"")).unwrap_err();
    assert!(
        error.contains("only one of join_token and join_token_file"),
        "{error}"
    );
    let config = parse(&with("join_token_file = \"/t\"")).unwrap();
    assert_eq!(config.essentials().join_token, Some(JoinToken::File("/t".into())));
}

#[test]
fn keys_that_would_change_what_is_served_are_refused_by_name() {
    for (key, text) in [
        (
            "admin_socket_path",
            "admin_socket_path = \"/tmp/spire-agent/public/private/admin.sock\"",
        ),
        (
            "authorized_delegates",
            "authorized_delegates = [\"spiffe://other.org/a\"]",
        ),
        (
            "authorized_delegates",
            "authorized_delegates = [\"spiffe://example.org/spire/agent/a\"]",
        ),
        ("authorized_delegates", "authorized_delegates = [\"/a\"]"),
        ("availability_target", "availability_target = \"23h59m\""),
        ("require_pq_kem", "experimental { require_pq_kem = true }"),
        ("feature_flags", "experimental { feature_flags = [\"x\"] }"),
        (
            "at least one broker",
            "experimental { broker { socket_path = \"/run/broker/b.sock\" } }",
        ),
        (
            "fetch_x509_svid",
            "experimental { ratelimit { fetch_x509_svid = -5 } }",
        ),
        (
            "workload_x509_svid_key_type",
            "workload_x509_svid_key_type = \"rsa-4096\"",
        ),
        (
            "jwt_svid_cache_hit_timeout",
            "experimental { jwt_svid_cache_hit_timeout = \"5s\" }",
        ),
        (
            "jwt_svid_cache_hit_timeout",
            "experimental { jwt_svid_cache_hit_timeout = \"30s\" }",
        ),
    ] {
        let error = parse(&with(text)).unwrap_err();
        assert!(error.contains(key), "{key} in {error}");
        assert_eq!(error.lines().count(), 1, "one sentence: {error}");
    }
}

#[test]
fn mistakes_about_brokers_are_told() {
    let broker = |id: &str, types: &str| format!("{{ id = \"{id}\", allowed_reference_types = [{types}] }}");
    let any = "{ type_url = \"*\" }";
    let (a, b) = (
        broker("spiffe://example.org/a", any),
        broker("spiffe://example.org/b", any),
    );
    for (text, brokers, why) in [
        ("", a.clone(), "requires socket_path, bind_address, or both"),
        (
            "socket_path = \"/tmp/spire-agent/public/b.sock\"",
            a.clone(),
            "must not be in the directory",
        ),
        (
            "bind_address = \"127.0.0.1\"",
            a.clone(),
            "must be an address and a port",
        ),
        ("bind_address = \"a:1\"", format!("{a}, {b}, {a}"), "stands twice"),
        (
            "bind_address = \"a:1\"",
            broker("spiffe://example.org/a", ""),
            "at least one type of references",
        ),
        (
            "bind_address = \"a:1\"",
            broker(
                "spiffe://example.org/a",
                &format!("{any}, {{ type_url = \"x\" }}"),
            ),
            "must be the only type",
        ),
        (
            "bind_address = \"a:1\"",
            broker("spiffe://example.org/a", "{ allow_over_tcp = true }"),
            "type_url",
        ),
        (
            "bind_address = \"a:1\"",
            broker("spiffe://example.org", any),
            "which is nobody",
        ),
        ("bind_address = \"a:1\"", broker("nobody", any), "brokers[0].id"),
    ] {
        let text = format!("experimental {{ broker {{ {text} brokers = [{brokers}] }} }}");
        let error = parse(&with(&text)).unwrap_err();
        assert!(error.contains(why), "{why} in {error}");
        assert_eq!(error.lines().count(), 1, "one sentence: {error}");
    }
}

#[test]
fn harmless_keys_are_accepted_with_a_warning() {
    for (key, text) in [
        ("profiling", "profiling_enabled = true"),
        (
            "rebootstrap_delay",
            "rebootstrap_mode = \"never\"\nrebootstrap_delay = \"1m\"",
        ),
        (
            "use_sync_authorized_entries",
            "experimental { use_sync_authorized_entries = false }",
        ),
        ("named_pipe_name", "experimental { named_pipe_name = \"a\" }"),
        (
            "authorized_delegates",
            "authorized_delegates = [\"spiffe://example.org/a\"]",
        ),
    ] {
        let config = parse(&with(text)).unwrap();
        assert!(
            matches!(config.warnings(), [only] if only.contains(key)),
            "{key}: {:?}",
            config.warnings()
        );
    }
    let limited = parse(&with(
        "experimental { ratelimit { fetch_x509_svid = 5 fetch_secrets = 1 } }",
    ))
    .unwrap();
    let limits = limited.rate_limits();
    assert_eq!(
        (
            limits.fetch_x509_svid,
            limits.fetch_secrets,
            limits.fetch_jwt_svid
        ),
        (5, 1, 0)
    );
    let silent = "admin_socket_path = \"\"\nexperimental { ratelimit { fetch_jwt_svid = 0 } }";
    assert_eq!(parse(&with(silent)).unwrap().warnings(), [""; 0]);
    let config = parse(&format!("{MINIMAL}\ntelemetry {{ Prometheus {{ port = 1 }} }}")).unwrap();
    assert_eq!(config.warnings(), [""; 0]);
    assert_eq!(config.telemetry().prometheus.as_ref().unwrap().port, 1);
    assert!(
        parse(&format!("{MINIMAL}\ntelemetry {{ M3 {{}} }}"))
            .unwrap_err()
            .contains("telemetry.M3")
    );
}

#[test]
fn plugins_that_are_not_served_are_refused_by_name() {
    for (from, to) in [
        ("KeyManager \"memory\"", "KeyManager \"aws_kms\""),
        ("NodeAttestor \"join_token\"", "NodeAttestor \"aws_iid\""),
        (
            "WorkloadAttestor \"unix\" {}",
            "WorkloadAttestor \"unix\" {}\nWorkloadAttestor \"slurm\" {}",
        ),
        (
            "WorkloadAttestor \"unix\" {}",
            "WorkloadAttestor \"unix\" {}\nSVIDStore \"gcp_secretmanager\" {}",
        ),
        (
            "WorkloadAttestor \"unix\" {}",
            "WorkloadAttestor \"unix\" { plugin_cmd = \"/bin/x\" }",
        ),
        (
            "KeyManager \"memory\" { plugin_data {} }",
            "KeyManager \"disk\" {}",
        ),
        (
            "KeyManager \"memory\" { plugin_data {} }",
            "KeyManager \"memory\" { plugin_data_file = \"/f\" }",
        ),
    ] {
        assert!(parse(&MINIMAL.replace(from, to)).is_err(), "{to}");
    }
    let off = MINIMAL.replace(
        "NodeAttestor",
        "KeyManager \"disk\" { enabled = false }\nNodeAttestor",
    );
    assert!(
        parse(&off).is_ok(),
        "a plugin that is switched off does not count"
    );
}
