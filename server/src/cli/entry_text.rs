//! A registration entry as text that scripts read.

use finial_identity::command::utc;
use finial_proto::spire::api::types;

/// The block of one entry, ending with an empty line.
pub fn block(entry: &types::Entry) -> String {
    let mut text = String::new();
    let mut line = |label: &str, value: &str| text.push_str(&format!("{label:<24}: {value}\n"));
    line("Entry ID", if entry.id.is_empty() { "(none)" } else { &entry.id });
    line("SPIFFE ID", &id_text(entry.spiffe_id.as_ref()));
    line("Parent ID", &id_text(entry.parent_id.as_ref()));
    line("Revision", &entry.revision_number.to_string());
    if entry.downstream {
        line("Downstream", "true");
    }
    line("X509-SVID TTL", &ttl(entry.x509_svid_ttl));
    line("JWT-SVID TTL", &ttl(entry.jwt_svid_ttl));
    if entry.expires_at != 0 {
        line("Expiration time", &utc(entry.expires_at));
    }
    for selector in &entry.selectors {
        line("Selector", &format!("{}:{}", selector.r#type, selector.value));
    }
    for domain in &entry.federates_with {
        line("FederatesWith", domain);
    }
    for name in &entry.dns_names {
        line("DNS name", name);
    }
    if entry.admin {
        line("Admin", "true");
    }
    if entry.store_svid {
        line("StoreSvid", "true");
    }
    if !entry.hint.is_empty() {
        line("Hint", &entry.hint);
    }
    if let Some(attributes) = &entry.additional_attributes {
        if attributes.disable_x509_svid_prefetch {
            line("DisableX509SvidPrefetch", "true");
        }
        if attributes.jwt_svid_include_jti {
            line("JwtSvidIncludeJti", "true");
        }
    }
    text.push('\n');
    text
}

/// A SPIFFE ID as a URI.
pub fn id_text(id: Option<&types::Spiffeid>) -> String {
    id.map(|id| format!("spiffe://{}{}", id.trust_domain, id.path))
        .unwrap_or_default()
}

fn ttl(seconds: i32) -> String {
    if seconds == 0 {
        "default".to_owned()
    } else {
        seconds.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_padded_to_24_and_conditional_lines_are_left_out() {
        let id = |path: &str| {
            Some(types::Spiffeid {
                trust_domain: "example.org".into(),
                path: path.into(),
            })
        };
        let entry = types::Entry {
            spiffe_id: id("/web"),
            parent_id: id("/spire/agent/x"),
            selectors: vec![types::Selector {
                r#type: "unix".into(),
                value: "uid:1".into(),
            }],
            jwt_svid_ttl: 60,
            ..types::Entry::default()
        };
        let expected = "Entry ID                : (none)\n\
                        SPIFFE ID               : spiffe://example.org/web\n\
                        Parent ID               : spiffe://example.org/spire/agent/x\n\
                        Revision                : 0\n\
                        X509-SVID TTL           : default\n\
                        JWT-SVID TTL            : 60\n\
                        Selector                : unix:uid:1\n\n";
        assert_eq!(block(&entry), expected);
    }
}
