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
