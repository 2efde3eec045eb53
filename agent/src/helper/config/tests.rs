use super::*;

const X509: &str =
    r#"svid_file_name = "svid.pem" svid_key_file_name = "key.pem" svid_bundle_file_name = "ca.pem""#;

fn flags(name: &str) -> Flags {
    Flags {
        config: name.into(),
        agent_address: None,
        daemon_mode: None,
    }
}

fn parse(text: &str) -> Result<HelperConfig, String> {
    HelperConfig::parse(text, &flags("helper.conf"), &|_| None).map_err(|error| error.to_string())
}

fn with_x509(text: &str) -> Result<HelperConfig, String> {
    parse(&format!("{X509}\ncert_dir = \"/c\"\n{text}"))
}

#[test]
fn the_smallest_file_has_spiffe_helpers_defaults() {
    let config = parse(X509).unwrap();
    assert!(config.daemon_mode());
    assert_eq!(config.socket(), Path::new("/tmp/spire-agent/public/api.sock"));
    let x509 = config.x509.as_ref().unwrap();
    let modes = [&x509.svid, &x509.key, &x509.bundle].map(|file| file.mode.as_u32());
    assert_eq!(modes, [0o644, 0o600, 0o644]);
    assert_eq!(x509.svid.shown, "svid.pem");
    assert_eq!(x509.svid.path, std::env::current_dir().unwrap().join("svid.pem"));
    assert!(!x509.omit_expired && !x509.include_federated_domains && !x509.add_intermediates_to_bundle);
    assert!(config.health_checks.is_none() && config.command.is_none() && config.warnings().is_empty());
}

#[test]
fn every_key_is_read_also_as_users_write_it() {
    let text = r#"
        agent_address = "/run/a.sock"
        cmd = "ghostunnel"
        cmd_args = "server --keystore \"my certs/key.pem\""
        pid_file_name = "/run/x.pid"
        cert_dir = "certs"
        daemon_mode = true
        add_intermediates_to_bundle = true
        renew_signal = "SIGUSR1"
        svid_file_name = "svid.pem"
        svid_key_file_name = "svid_key.pem"
        svid_bundle_file_name = "svid_bundle.pem"
        jwt_svids = [
          { jwt_svid_file_name = "a.token" jwt_audience = "a" jwt_extra_audiences = ["b", "c"] },
          {
            jwt_audience="d", jwt_svid_file_name="d.token"
          },
        ]
        jwt_bundle_file_name = "bundle.json"
        include_federated_domains = true
        cert_file_mode = 0444
        key_file_mode = "0440"
        jwt_bundle_file_mode = 0604
        jwt_svid_file_mode = "0o640"
        hint = "internal"
        omit_expired = true
        health_checks { listener_enabled = true bind_port = 9090 liveness_path = "/l" readiness_path = "/r" }
    "#;
    let config = parse(text).unwrap();
    let x509 = config.x509.as_ref().unwrap();
    assert!(x509.omit_expired && x509.include_federated_domains && x509.add_intermediates_to_bundle);
    assert_eq!((x509.svid.mode.as_u32(), x509.key.mode.as_u32()), (0o444, 0o440));
    assert_eq!(x509.key.shown, "certs/svid_key.pem");
    let bundle = config.jwt_bundle.as_ref().unwrap();
    assert_eq!(
        (bundle.shown.as_str(), bundle.mode.as_u32()),
        ("certs/bundle.json", 0o604)
    );
    let audiences: Vec<_> = config
        .jwt_svids
        .iter()
        .map(|svid| svid.audiences.join(" "))
        .collect();
    assert_eq!(audiences, ["a b c", "d"]);
    assert_eq!(config.jwt_svids[1].file.mode.as_u32(), 0o640);
    let command = config.command.as_ref().unwrap();
    assert_eq!(
        (command.program.as_str(), command.arguments.len()),
        ("ghostunnel", 3)
    );
    assert_eq!(command.arguments[2], "my certs/key.pem");
    assert_eq!(
        (config.pid_file.as_deref(), config.renew_signal),
        (Some(Path::new("/run/x.pid")), Some(Signal::USR1))
    );
    let health = config.health_checks.as_ref().unwrap();
    assert_eq!(
        (
            health.port,
            health.liveness_path.as_str(),
            health.readiness_path.as_str()
        ),
        (9090, "/l", "/r")
    );
    assert_eq!(config.hint.as_deref(), Some("internal"));
    assert_eq!(config.warnings(), [""; 0]);
}

#[test]
fn empty_texts_are_not_set_as_in_the_examples_of_spiffe_helper() {
    let text = r#"
        cmd = "" cmd_args = "" cert_dir = "" renew_signal = "" hint = ""
        svid_file_name = "tls.crt" svid_key_file_name = "tls.key" svid_bundle_file_name = "ca.pem"
        jwt_bundle_file_name = "cert.jwt"
        jwt_svids = [{jwt_audience="test", jwt_svid_file_name="jwt_svid.token"}]
        daemon_mode = false
    "#;
    let config = parse(text).unwrap();
    assert!(!config.daemon_mode() && config.command.is_none() && config.renew_signal.is_none());
    assert_eq!(config.warnings(), [""; 0]);
}

#[test]
fn all_mistakes_are_told_together() {
    let text = r#"
        agent_address = "tcp://127.0.0.1:80"
        renew_signal = "HUP"
        cmd_args = "\"open"
        svid_file_name = "svid.pem"
        svidKeyFileName = "key.pem"
        jwt_svids = [{ jwt_audience = "a", file = "b" }]
        cert_file_mode = -1
        key_file_mode = 640
        health_checks { listener_enabled = true, liveness_path = "live", port = 1 }
    "#;
    let error = parse(text).unwrap_err();
    assert!(error.starts_with("unknown configuration detected\n"), "{error}");
    for part in [
        "agent_address (line 2): must be the path of a Unix socket: tcp://127.0.0.1:80",
        "renew_signal (line 3): is not the name of a signal, like SIGHUP: HUP",
        "cmd_args (line 4): a double quote is not closed",
        "svid_key_file_name (line 1): is required beside",
        "svid_bundle_file_name (line 1): is required beside",
        "svidKeyFileName (line 6): unknown key",
        "jwt_svids[0].file (line 7): unknown key",
        "jwt_svids[0].jwt_svid_file_name (line 7): is required",
        "cert_file_mode (line 8): must be a file mode",
        "key_file_mode (line 9): must be a file mode of at most 0777, with a leading 0 for octal: 640",
        "health_checks.liveness_path (line 10): must be a plain path",
        "health_checks.port (line 10): unknown key",
    ] {
        assert!(error.contains(part), "{part} in\n{error}");
    }
    assert_eq!(error.lines().count(), 13, "{error}");
}

#[test]
fn nothing_to_write_is_a_mistake() {
    let error = parse("cert_dir = \"/c\"").unwrap_err();
    assert!(error.starts_with("nothing to write: "), "{error}");
    assert!(parse("jwt_bundle_file_name = \"b\"").is_ok());
}

#[test]
fn flag_file_variable_default_is_the_order_of_the_agents_address() {
    let env = |name: &str| (name == "SPIFFE_ENDPOINT_SOCKET").then(|| "unix:///run/env.sock".to_owned());
    let socket = |text: &str, flag: Option<&str>| {
        let flags = Flags {
            agent_address: flag.map(str::to_owned),
            ..flags("helper.conf")
        };
        let config = HelperConfig::parse(&format!("{X509}\n{text}"), &flags, &env);
        config
            .map(|config| config.socket().display().to_string())
            .map_err(|error| error.to_string())
    };
    let in_file = "agent_address = \"/run/file.sock\"";
    assert_eq!(
        socket(in_file, Some("unix:///run/flag.sock")).unwrap(),
        "/run/flag.sock"
    );
    assert_eq!(socket(in_file, None).unwrap(), "/run/file.sock");
    assert_eq!(socket("agent_address = \"\"", None).unwrap(), "/run/env.sock");
    assert_eq!(socket("", None).unwrap(), "/run/env.sock");
    let error = socket("", Some("tcp://a")).unwrap_err();
    assert_eq!(error, "-agentAddress: must be the path of a Unix socket: tcp://a");
}

#[test]
fn a_mode_in_decimal_is_taken_as_spiffe_helper_does_and_told() {
    let config = with_x509("cert_file_mode = 444 key_file_mode = 0").unwrap();
    let x509 = config.x509.as_ref().unwrap();
    assert_eq!((x509.svid.mode.as_u32(), x509.key.mode.as_u32()), (0o674, 0o600));
    assert_eq!(
        config.warnings(),
        ["cert_file_mode: 444 is a decimal number and means mode 0674; octal ones begin with 0"]
    );
}

#[test]
fn two_files_of_one_name_are_a_mistake() {
    let error =
        with_x509("jwt_svids = [{ jwt_audience = \"a\" jwt_svid_file_name = \"./key.pem\" }]").unwrap_err();
    assert_eq!(
        error,
        "jwt_svids (line 3): names the same file as svid_key_file_name: /c/key.pem"
    );
}

#[test]
fn a_pid_file_needs_a_signal_and_a_daemon() {
    assert_eq!(
        with_x509("pid_file_name = \"/p\"").unwrap_err(),
        "pid_file_name (line 3): needs renew_signal beside it"
    );
    assert_eq!(
        with_x509("pid_file_name = \"/p\" renew_signal = \"SIGHUP\" daemon_mode = false").unwrap_err(),
        "pid_file_name (line 3): has an effect only with daemon_mode = true"
    );
    let once = with_x509("cmd = \"a\" renew_signal = \"SIGHUP\" daemon_mode = false").unwrap();
    assert_eq!(once.warnings().len(), 2, "{:?}", once.warnings());
}

#[test]
fn the_flag_decides_on_daemon_mode() {
    let flags = Flags {
        daemon_mode: Some(false),
        ..flags("helper.conf")
    };
    let text = format!("{X509}\ndaemon_mode = true\nhealth_checks {{ listener_enabled = true }}");
    let config = HelperConfig::parse(&text, &flags, &|_| None).unwrap();
    assert!(!config.daemon_mode() && config.health_checks.is_none());
}

#[test]
fn a_command_that_never_hears_of_anything_is_warned_about() {
    let config = parse("jwt_bundle_file_name = \"b\" cmd = \"a\"").unwrap();
    assert_eq!(config.warnings().len(), 1, "{:?}", config.warnings());
}
