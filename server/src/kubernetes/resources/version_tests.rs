use super::{SCHEMA_VERSION, definitions};

/// The version of the definitions, and what they are in it. A server applies its definitions only where the cluster's
/// have a lower number: whoever changes a type raises `SCHEMA_VERSION` and writes the new digest here.
const PINNED: (u32, &str) = (2, "642efe57680047376dfefda85fd1470d");

#[test]
fn a_definition_that_changed_has_a_new_version() {
    let text = serde_json::to_string(&definitions()).unwrap();
    let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
    let digest = data_encoding::HEXLOWER.encode(&digest.as_ref()[..16]);
    assert_eq!((SCHEMA_VERSION, digest.as_str()), PINNED);
}
