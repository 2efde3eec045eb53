//! Objects from files in place of a cluster.

use std::time::Duration;

use finial_tests::{Stack, StackOptions};
use tempfile::TempDir;

const SOON: Duration = Duration::from_secs(60);

#[test]
fn a_relationship_from_a_file_whose_bundle_cannot_be_fetched_is_complained_of() {
    let directory = TempDir::with_prefix("finial-").expect("a temporary directory");
    let object = "apiVersion: spire.spiffe.io/v1alpha1\nkind: ClusterFederatedTrustDomain\nmetadata: {name: partner}\nspec:\n  trustDomain: partner.test\n  bundleEndpointURL: https://127.0.0.1:1\n  bundleEndpointProfile: {type: https_web}\n";
    std::fs::write(directory.path().join("partner.yaml"), object).expect("the object is written");
    let mut stack = Stack::server_only(StackOptions {
        server: format!(
            r#"kubernetes {{ clusters {{ "files" = {{ static_manifest_path = "{}" }} }} }}"#,
            directory.path().display()
        ),
        ..StackOptions::default()
    });
    let line = stack
        .server()
        .wait_for_line("federation relationship is not in force", SOON);
    assert!(line.contains("FetchFailed") && line.contains("partner"), "{line}");
}

#[test]
fn static_entries_from_files_that_are_not_in_force_are_complained_of() {
    let directory = TempDir::with_prefix("finial-").expect("a temporary directory");
    let object = |name: &str, selector: &str| {
        format!(
            "apiVersion: spire.spiffe.io/v1alpha1\nkind: ClusterStaticEntry\nmetadata: {{name: {name}}}\nspec:\n  spiffeID: spiffe://example.org/db\n  parentID: spiffe://example.org/spire/agent/x\n  selectors: [\"{selector}\"]\n"
        )
    };
    let objects = [
        object("a-first", "unix:uid:70"),
        object("b-same", "unix:uid:70"),
        object("c-invalid", "nothing"),
    ];
    std::fs::write(directory.path().join("all.yaml"), objects.join("---\n"))
        .expect("the objects are written");
    let mut stack = Stack::server_only(StackOptions {
        server: format!(
            r#"kubernetes {{ clusters {{ "files" = {{ static_manifest_path = "{}" }} }} }}"#,
            directory.path().display()
        ),
        ..StackOptions::default()
    });
    for (name, reason) in [("b-same", "Masked"), ("c-invalid", "Invalid")] {
        let line = stack.server().wait_for_line(&format!("object={name}"), SOON);
        assert!(
            line.contains(reason) && line.contains("static entry is not in force"),
            "{line}"
        );
    }
}
