//! The image and the pods that run it.

use std::fs;

use serde_json::json;

use crate::engine::{engine, repository};
use crate::sets::{required, sets};

#[test]
fn the_image_has_one_program_and_neither_shell_nor_root() {
    let text = fs::read_to_string(repository().join("Dockerfile")).expect("a Dockerfile");
    let (_, last) = text.rsplit_once("\nFROM ").expect("stages");
    assert!(last.starts_with("scratch"), "{last}");
    assert!(last.contains("\nUSER 1000:1000\n"), "{last}");
    assert!(last.contains("\nENTRYPOINT [\"/usr/bin/finial\"]"), "{last}");
    assert!(!last.contains("\nRUN "), "an empty image has no shell: {last}");
    // Not linked against libraries that an empty image has not.
    assert!(text.contains("target-feature=+crt-static"));
    assert!(text.contains("--locked"));
    // Where the program looks for the authorities of the Web.
    assert!(text.contains(" /image/etc/ssl/certs/ca-certificates.crt"));
}

#[test]
fn one_image_runs_everything() {
    let Some(engine) = engine() else { return };
    for (set, values) in sets(engine) {
        let rendered = engine.render(&values).expect("renders");
        let text = serde_json::to_string(&rendered.files).expect("JSON");
        let images: std::collections::BTreeSet<_> = text
            .split(r#""image":""#)
            .skip(1)
            .filter_map(|rest| rest.split('"').next())
            .collect();
        assert_eq!(images.len(), 1, "{set}: {images:?}");
        let pulls = text.matches("imagePullPolicy").count();
        assert_eq!(pulls, text.matches(r#""image":""#).count(), "{set}");
    }
}

#[test]
fn its_name_is_put_together_from_registry_repository_and_tag_or_digest() {
    let Some(engine) = engine() else { return };
    let name = |given: serde_json::Value| {
        let mut values = required();
        crate::engine::merge(&mut values, &given);
        let rendered = engine.render(&values).expect("renders");
        let server = rendered.named("StatefulSet", "finial-server");
        server["spec"]["template"]["spec"]["containers"][0]["image"].clone()
    };
    let digest = format!("sha256:{:064}", 7);
    assert_eq!(name(json!({})), "finial/finial:0.1.0");
    assert_eq!(
        name(json!({"image": {"registry": "a.example", "tag": "2"}})),
        "a.example/finial/finial:2"
    );
    assert_eq!(
        name(
            json!({"image": {"registry": "a.example"}, "global": {"spire": {"image": {"registry": "b.example"}}}})
        ),
        "b.example/finial/finial:0.1.0"
    );
    assert_eq!(
        name(json!({"image": {"tag": "2", "digest": digest}})),
        format!("finial/finial@{digest}")
    );
}

/// The chart's version is the program's.
#[test]
fn the_chart_is_of_the_version_of_the_program() {
    let text = fs::read_to_string(repository().join("charts/finial/Chart.yaml")).expect("Chart.yaml");
    let version = env!("CARGO_PKG_VERSION");
    assert!(text.contains(&format!("\nversion: {version}\n")), "{text}");
    assert!(text.contains(&format!("\nappVersion: {version}\n")), "{text}");
}
