//! SPIFFE IDs, selectors and what is in entries.

use std::collections::BTreeSet;

use finial_identity::entry::{check_dns_name, check_entry_id, check_hint};
use finial_identity::selector::{Selector, is_subset};
use finial_identity::spiffe_id::{SpiffeId, TrustDomain};

/// What is accepted is kept byte for byte, and its parts make the same ID again.
pub fn run_spiffe_id(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(id) = SpiffeId::parse(text) {
        assert_eq!(id.as_str(), text);
        assert_eq!(id.to_string(), text);
        assert!(text.len() <= 2048);
        assert!(text.is_ascii());
        assert_eq!(SpiffeId::new(id.trust_domain(), id.path()).unwrap(), id);
        assert!(id.is_member_of(id.trust_domain()));
        assert!(!(id.is_workload() && id.is_reserved()));
        assert!(!id.is_agent() || id.is_reserved());
        assert!(!id.path().ends_with('/') && !id.path().contains("//"));
        for segment in id.path().split('/').skip(1) {
            assert!(!segment.is_empty() && segment != "." && segment != "..");
        }
    }
    if let Ok(name) = TrustDomain::parse(text) {
        assert_eq!(name.as_str(), text);
        assert_eq!(SpiffeId::parse(&format!("spiffe://{text}")).unwrap(), name.id());
        assert_eq!(TrustDomain::parse_name_or_id(name.id().as_str()).unwrap(), name);
        assert_eq!(TrustDomain::parse_name_or_id(text).unwrap(), name);
    }
    if let Ok(name) = TrustDomain::parse_name_or_id(text) {
        assert!(text == name.as_str() || text == name.id().as_str());
    }
}

/// Each line is a selector.
pub fn run_selector(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let mut found = Vec::new();
    for line in text.lines() {
        let Ok(selector) = Selector::parse(line) else {
            continue;
        };
        assert_eq!(selector.to_string(), line);
        assert_eq!(
            Selector::new(selector.kind(), selector.value()).unwrap(),
            selector
        );
        assert!(
            !selector.kind().is_empty() && !selector.kind().contains(':') && !selector.value().is_empty()
        );
        found.push(selector);
    }
    let all: BTreeSet<Selector> = found.iter().cloned().collect();
    assert_eq!(is_subset(&found, &all), !found.is_empty());
}

/// Each line is a DNS name, an entry's id and a hint.
pub fn run_entry(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    for line in text.lines() {
        if check_dns_name(line).is_ok() {
            assert!(line.is_ascii() && !line.is_empty() && line.len() <= 253 && !line.ends_with('.'));
            assert!(
                !line
                    .bytes()
                    .any(|byte| byte.is_ascii_uppercase() || byte.is_ascii_control() || byte == b' ')
            );
            assert!(check_dns_name(&format!("{line}.")).is_err());
        }
        if check_entry_id(line).is_ok() {
            assert!(!line.is_empty() && line.len() <= 255 && !line.contains(['/', ':', ' ', '%']));
        }
        assert_eq!(check_hint(line).is_ok(), line.len() <= 1024);
    }
}
