//! The bundle endpoint of `spire-server.federation`.

use serde_json::{Value, json};

use crate::engine::{Engine, Rendered, at, engine, merge};
use crate::sets::required;

fn rendered(engine: &Engine, given: Value) -> Rendered {
    let mut values = required();
    merge(&mut values, &at("spire-server.federation", given));
    engine.render(&values).expect("renders")
}

/// What the server's configuration says of it.
fn configured(engine: &Engine, rendered: &Rendered) -> Value {
    let text = rendered.named("ConfigMap", "finial-server")["data"]["server.yaml"].clone();
    engine.yaml(text.as_str().expect("a file"))["server"]["federation"].clone()
}

fn pod(rendered: &Rendered) -> &Value {
    &rendered.named("StatefulSet", "finial-server")["spec"]["template"]["spec"]
}

fn named<'a>(list: &'a Value, name: &str) -> Option<&'a Value> {
    let list = list.as_array().expect("a list");
    list.iter().find(|one| one["name"] == name)
}

/// The rule of the server's network policy for a port.
fn ingress<'a>(rendered: &'a Rendered, port: &str) -> Option<&'a Value> {
    let rules = rendered.named("NetworkPolicy", "finial-server")["spec"]["ingress"].as_array();
    let mut rules = rules.expect("rules").iter();
    rules.find(|rule| rule["ports"][0]["port"] == port)
}

#[test]
fn nothing_is_served_to_others_unless_it_is_asked_for() {
    let Some(engine) = engine() else { return };
    let bare = rendered(engine, json!({}));
    assert_eq!(configured(engine, &bare), Value::Null);
    assert_eq!(named(&pod(&bare)["containers"][0]["ports"], "federation"), None);
    let service = bare.named("Service", "finial-server");
    assert_eq!(named(&service["spec"]["ports"], "federation"), None);
    assert_eq!(ingress(&bare, "federation"), None);
    assert!(!bare.notes.contains("other trust domains"), "{}", bare.notes);
}

#[test]
fn the_endpoint_is_at_the_service_for_everybody_with_the_servers_own_svid() {
    let Some(engine) = engine() else { return };
    let on = rendered(
        engine,
        json!({"enabled": true, "bundleEndpoint": {"port": 9443, "refreshHint": "1m"}}),
    );
    assert_eq!(
        configured(engine, &on),
        json!({"bundle_endpoint": {
            "address": "0.0.0.0", "port": 9443, "refresh_hint": "1m", "profile": {"https_spiffe": {}},
        }})
    );
    let port = named(&pod(&on)["containers"][0]["ports"], "federation").expect("a port");
    assert_eq!(port["containerPort"], 9443);
    let service = on.named("Service", "finial-server");
    let port = named(&service["spec"]["ports"], "federation").expect("a port");
    assert_eq!(
        (&port["port"], &port["targetPort"]),
        (&json!(9443), &json!("federation"))
    );
    let rule = ingress(&on, "federation").expect("a rule");
    assert_eq!(rule["from"], Value::Null, "public keys are for everybody");
    assert!(ingress(&on, "grpc").is_some_and(|rule| rule["from"].is_array()));
    assert_eq!(named(&pod(&on)["volumes"], "bundle-endpoint"), None);
    for part in [
        "https://finial-server.spire-server.svc.cluster.local:9443",
        "spiffe://example.org/spire/server",
        "server bundle show -format spiffe",
    ] {
        assert!(on.notes.contains(part), "{}", on.notes);
    }
}

#[test]
fn a_certificate_of_the_web_comes_from_a_secret_that_the_servers_group_may_read() {
    let Some(engine) = engine() else { return };
    let web = rendered(
        engine,
        json!({
            "enabled": true,
            "bundleEndpoint": {"profile": {"httpWeb": {"fileSyncInterval": "10m"}}},
            "tls": {"spire": {"enabled": false}, "externalSecret": {"enabled": true, "secretName": "bundles"}},
        }),
    );
    let profile = &configured(engine, &web)["bundle_endpoint"]["profile"];
    assert_eq!(
        *profile,
        json!({"https_web": {"serving_cert_file": {
            "cert_file_path": "/etc/finial/bundle-endpoint/tls.crt",
            "key_file_path": "/etc/finial/bundle-endpoint/tls.key",
            "file_sync_interval": "10m",
        }}})
    );
    let volume = named(&pod(&web)["volumes"], "bundle-endpoint").expect("a volume");
    assert_eq!(
        volume["secret"],
        json!({"secretName": "bundles", "defaultMode": 0o440})
    );
    let mount = named(&pod(&web)["containers"][0]["volumeMounts"], "bundle-endpoint").expect("a mount");
    assert_eq!(
        (&mount["mountPath"], &mount["readOnly"]),
        (&json!("/etc/finial/bundle-endpoint"), &json!(true))
    );
    assert!(web.notes.contains("by profile https_web"), "{}", web.notes);
    assert!(!web.notes.contains("bundle show"), "{}", web.notes);
}

#[test]
fn who_may_ask_can_be_narrowed() {
    let Some(engine) = engine() else { return };
    let peers = json!([{"ipBlock": {"cidr": "10.20.0.0/16"}}]);
    let mut values = required();
    merge(&mut values, &at("spire-server.federation.enabled", json!(true)));
    merge(&mut values, &at("networkPolicy.federationFrom", peers.clone()));
    let rendered = engine.render(&values).expect("renders");
    let rule = ingress(&rendered, "federation").expect("a rule");
    assert_eq!(rule["from"], peers);
}
