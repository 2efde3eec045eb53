//! The document that `entry create -data` and `entry update -data` read.

use anyhow::Context;
use finial_identity::spiffe_id::TrustDomain;
use finial_proto::spire::api::types;
use serde::Deserialize;

use finial_identity::command::flags::spiffe_id;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    entries: Vec<DocumentEntry>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[derive(Default)]
struct DocumentEntry {
    selectors: Vec<DocumentSelector>,
    parent_id: String,
    spiffe_id: String,
    x509_svid_ttl: i32,
    jwt_svid_ttl: i32,
    federates_with: Vec<String>,
    entry_id: String,
    admin: bool,
    downstream: bool,
    #[serde(rename = "entryExpiry")]
    entry_expiry: i64,
    dns_names: Vec<String>,
    store_svid: bool,
    hint: String,
    additional_attributes: Option<DocumentAttributes>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct DocumentSelector {
    #[serde(rename = "type")]
    kind: String,
    value: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct DocumentAttributes {
    disable_x509_svid_prefetch: bool,
    jwt_svid_include_jti: bool,
}

/// Parses the document.
///
/// # Errors
/// Names the entry by its position and what is wrong with it.
pub fn parse(text: &str) -> anyhow::Result<Vec<types::Entry>> {
    let document: Document = serde_json::from_str(text).context("parse the entries document")?;
    document
        .entries
        .into_iter()
        .enumerate()
        .map(|(index, entry)| convert(entry).with_context(|| format!("entry {index} of the document")))
        .collect()
}

fn convert(entry: DocumentEntry) -> anyhow::Result<types::Entry> {
    for name in &entry.federates_with {
        TrustDomain::parse_name_or_id(name).with_context(|| format!("federates_with {name:?}"))?;
    }
    Ok(types::Entry {
        id: entry.entry_id,
        spiffe_id: Some(spiffe_id(&entry.spiffe_id)?),
        parent_id: Some(spiffe_id(&entry.parent_id)?),
        selectors: entry
            .selectors
            .into_iter()
            .map(|selector| types::Selector {
                r#type: selector.kind,
                value: selector.value,
            })
            .collect(),
        x509_svid_ttl: entry.x509_svid_ttl,
        jwt_svid_ttl: entry.jwt_svid_ttl,
        federates_with: entry.federates_with,
        admin: entry.admin,
        downstream: entry.downstream,
        expires_at: entry.entry_expiry,
        dns_names: entry.dns_names,
        store_svid: entry.store_svid,
        hint: entry.hint,
        additional_attributes: entry.additional_attributes.map(|attributes| {
            types::entry::AdditionalAttributes {
                disable_x509_svid_prefetch: attributes.disable_x509_svid_prefetch,
                jwt_svid_include_jti: attributes.jwt_svid_include_jti,
            }
        }),
        ..types::Entry::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_spires_members_with_their_odd_spelling() {
        let entries = parse(
            r#"{"entries":[{"selectors":[{"type":"unix","value":"uid:1"}],"parent_id":"spiffe://example.org/p",
                "spiffe_id":"spiffe://example.org/s","entryExpiry":12,"x509_svid_ttl":60}]}"#,
        )
        .unwrap();
        assert_eq!(entries.len(), 1);
        assert_eq!(entries[0].expires_at, 12);
        assert_eq!(entries[0].spiffe_id.as_ref().unwrap().path, "/s");
        assert_eq!(entries[0].selectors[0].value, "uid:1");
    }

    #[test]
    fn names_the_entry_that_is_wrong() {
        let error =
            parse(r#"{"entries":[{"parent_id":"x","spiffe_id":"spiffe://example.org/s"}]}"#).unwrap_err();
        assert!(
            format!("{error:#}").starts_with("entry 0 of the document"),
            "{error:#}"
        );
        assert!(
            parse(r#"{"entries":[{"entry_expiry":1}]}"#).is_err(),
            "an unknown member is refused"
        );
    }
}
