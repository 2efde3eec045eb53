//! URLs of bundle endpoints, and where their redirects lead.

use finial_identity::federation::{EndpointUrl, MAX_URL_BYTES};

/// The first line is a URL; each later one is what a redirect says.
pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let mut lines = text.lines();
    let Ok(url) = EndpointUrl::parse(lines.next().unwrap_or_default()) else {
        return;
    };
    check(&url);
    for location in lines {
        if let Ok(target) = url.redirected(location) {
            check(&target);
        }
    }
}

/// Whoever is accepted is asked over TLS at a host, and nothing shows what may be a secret.
fn check(url: &EndpointUrl) {
    assert!(url.as_str().len() <= MAX_URL_BYTES);
    assert_eq!(url.uri().scheme_str(), Some("https"));
    assert!(!url.host().is_empty() && url.port() != 0);
    let authority = url.uri().authority().map_or("", |authority| authority.as_str());
    assert!(!authority.contains('@'));
    assert!(url.path_and_query().starts_with('/'));
    let shown = url.to_string();
    assert!(shown.starts_with("https://") && !shown.contains('?'));
    assert_eq!(&EndpointUrl::parse(url.as_str()).expect("it was accepted"), url);
}
