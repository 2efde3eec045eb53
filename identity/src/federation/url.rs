//! The URL of a bundle endpoint.

use std::fmt;
use std::net::Ipv6Addr;
use std::sync::Arc;

use http::Uri;
use thiserror::Error;

/// The longest URL that is taken, in bytes.
pub const MAX_URL_BYTES: usize = 2048;

const DEFAULT_PORT: u16 = 443;

/// An `https` URL with a host and without user information (SPIFFE Federation §5.2.1.1). Port, path and query
/// are free. Kept as it was written.
#[derive(Clone, PartialEq, Eq)]
pub struct EndpointUrl {
    text: Arc<str>,
    uri: Uri,
}

/// Why a URL is refused. A text never shows user information.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum EndpointUrlError {
    /// It is longer than [`MAX_URL_BYTES`].
    #[error("bundle endpoint URL is longer than {MAX_URL_BYTES} bytes: {0}")]
    TooLong(usize),
    /// It is no URL.
    #[error("bundle endpoint URL is malformed: {0}")]
    Malformed(String),
    /// The scheme is another.
    #[error("bundle endpoint URL must use the https scheme: {0:?}")]
    Scheme(String),
    /// It has no host.
    #[error("bundle endpoint URL must specify the host")]
    NoHost,
    /// It has user information.
    #[error("bundle endpoint URL must not contain user info: host {0:?}")]
    UserInfo(String),
    /// Its port is none.
    #[error("bundle endpoint URL has a port that is none: {0:?}")]
    Port(String),
}

impl EndpointUrl {
    /// Reads a URL.
    ///
    /// # Errors
    /// [`EndpointUrlError`].
    pub fn parse(text: &str) -> Result<Self, EndpointUrlError> {
        if text.len() > MAX_URL_BYTES {
            return Err(EndpointUrlError::TooLong(text.len()));
        }
        // Fragments are not sent, and the parser does not keep them.
        let uri: Uri = text
            .parse()
            .map_err(|error: http::uri::InvalidUri| EndpointUrlError::Malformed(error.to_string()))?;
        if uri.scheme_str() != Some("https") {
            let scheme = uri.scheme_str().unwrap_or_default();
            return Err(EndpointUrlError::Scheme(scheme.to_owned()));
        }
        let authority = uri.authority().ok_or(EndpointUrlError::NoHost)?;
        if authority.as_str().contains('@') {
            return Err(EndpointUrlError::UserInfo(authority.host().to_owned()));
        }
        if authority.host().is_empty() || authority.host() == "[]" {
            return Err(EndpointUrlError::NoHost);
        }
        let after_host = authority
            .as_str()
            .get(authority.host().len()..)
            .unwrap_or_default();
        if !is_host(authority.host()) {
            return Err(EndpointUrlError::Malformed("host is no address".to_owned()));
        }
        // What a bracket closes may be followed by a port alone; the parser takes anything.
        let port = match after_host.strip_prefix(':') {
            None if after_host.is_empty() => "",
            Some(port) => port,
            None => {
                return Err(EndpointUrlError::Malformed(
                    "host does not end with its bracket".to_owned(),
                ));
            }
        };
        if !port.is_empty() && !port.parse::<u16>().is_ok_and(|port| port != 0) {
            return Err(EndpointUrlError::Port(port.to_owned()));
        }
        let uri = match uri.path_and_query().map(http::uri::PathAndQuery::as_str) {
            // A request needs a path.
            Some(query) if query.starts_with('?') => format!("https://{authority}/{query}")
                .parse()
                .map_err(|error: http::uri::InvalidUri| EndpointUrlError::Malformed(error.to_string()))?,
            _ => uri,
        };
        Ok(Self {
            text: text.into(),
            uri,
        })
    }

    /// The URL as it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The parsed URL.
    #[must_use]
    pub fn uri(&self) -> &Uri {
        &self.uri
    }

    /// A DNS name, or an IP address without brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        let host = self.uri.host().unwrap_or_default();
        host.trim_start_matches('[').trim_end_matches(']')
    }

    /// The port, 443 unless the URL has another.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.uri.port_u16().unwrap_or(DEFAULT_PORT)
    }

    /// What is asked for at the host.
    #[must_use]
    pub fn path_and_query(&self) -> &str {
        self.uri
            .path_and_query()
            .map_or("/", http::uri::PathAndQuery::as_str)
    }

    /// Where a redirect leads: `location` against this URL (RFC 9110 §10.2.2).
    ///
    /// # Errors
    /// [`EndpointUrlError`], when the target is no valid URL of an endpoint (SPIFFE Federation §5.2.1.4).
    pub fn redirected(&self, location: &str) -> Result<Self, EndpointUrlError> {
        if location.len() > MAX_URL_BYTES {
            return Err(EndpointUrlError::TooLong(location.len()));
        }
        let authority = self.uri.authority().map_or("", http::uri::Authority::as_str);
        let path = self.uri.path();
        let target = if has_scheme(location) {
            location.to_owned()
        } else if location.starts_with("//") {
            format!("https:{location}")
        } else if location.starts_with('/') {
            format!("https://{authority}{location}")
        } else if location.starts_with('?') {
            format!("https://{authority}{path}{location}")
        } else {
            let folder = path.rfind('/').map_or("/", |end| &path[..=end]);
            format!("https://{authority}{folder}{location}")
        };
        Self::parse(&target)
    }
}

/// `name:` in front of any of `/?#` (RFC 3986 §3.1).
/// Whether brackets, if there are any, are around an IPv6 address.
fn is_host(host: &str) -> bool {
    match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(address) => address.parse::<Ipv6Addr>().is_ok(),
        None => !host.contains(['[', ']']),
    }
}

fn has_scheme(reference: &str) -> bool {
    let head = reference.split(['/', '?', '#']).next().unwrap_or_default();
    head.split_once(':').is_some_and(|(scheme, _)| {
        scheme.starts_with(|first: char| first.is_ascii_alphabetic())
            && scheme
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
    })
}

/// Without the query, which may hold a secret.
impl fmt::Display for EndpointUrl {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let authority = self.uri.authority().map_or("", http::uri::Authority::as_str);
        write!(out, "https://{authority}{}", self.uri.path())
    }
}

impl fmt::Debug for EndpointUrl {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_https_url_is_taken_apart_and_shown_without_its_query() {
        let url = EndpointUrl::parse("https://bundles.a.test:8443/b/c?token=x").unwrap();
        assert_eq!(
            (url.host(), url.port(), url.path_and_query()),
            ("bundles.a.test", 8443, "/b/c?token=x")
        );
        assert_eq!(url.as_str(), "https://bundles.a.test:8443/b/c?token=x");
        assert_eq!(url.to_string(), "https://bundles.a.test:8443/b/c");
        assert_eq!(format!("{url:?}"), "https://bundles.a.test:8443/b/c");
        let query = EndpointUrl::parse("https://a.test?x=1").unwrap();
        assert_eq!(
            (query.as_str(), query.path_and_query()),
            ("https://a.test?x=1", "/?x=1")
        );
        let short = EndpointUrl::parse("https://a.test").unwrap();
        assert_eq!((short.port(), short.path_and_query()), (443, "/"));
        let address = EndpointUrl::parse("https://[::1]:9443/").unwrap();
        assert_eq!((address.host(), address.port()), ("::1", 9443));
    }

    #[test]
    fn what_no_endpoint_can_have_is_refused_and_a_password_is_not_shown() {
        for (text, part) in [
            ("http://a.test/", "https scheme"),
            ("a.test", "https scheme"),
            ("/bundle", "https scheme"),
            ("https://", ""),
            ("https:///bundle", ""),
            ("https://:8443/", ""),
            ("https://u:secret@a.test/", "user info"),
            ("https://@a.test/", "user info"),
            ("https://a.test:99999/", "port"),
            ("https://a.test:0/", "port"),
            ("https://a test/", "malformed"),
            ("https://[::]x:0", "malformed"),
            ("https://[::1]8443/", "malformed"),
            ("https://[a.test]/", "malformed"),
            ("ftp://a.test/", "https scheme"),
        ] {
            let error = EndpointUrl::parse(text).unwrap_err().to_string();
            assert!(
                error.contains(part) && !error.contains("secret"),
                "{text}: {error}"
            );
        }
        let long = format!("https://a.test/{}", "x".repeat(MAX_URL_BYTES));
        assert!(matches!(
            EndpointUrl::parse(&long),
            Err(EndpointUrlError::TooLong(_))
        ));
    }

    #[test]
    fn a_redirect_leads_to_valid_endpoints_only() {
        let url = EndpointUrl::parse("https://a.test:8443/b/c?x=1").unwrap();
        for (location, expected) in [
            ("https://b.test/d", "https://b.test/d"),
            ("//b.test/d", "https://b.test/d"),
            ("/d?y=2", "https://a.test:8443/d?y=2"),
            ("d", "https://a.test:8443/b/d"),
            ("?y=2", "https://a.test:8443/b/c?y=2"),
        ] {
            assert_eq!(url.redirected(location).unwrap().as_str(), expected);
        }
        for location in [
            "http://a.test/",
            "https://u:p@a.test/",
            "file:///etc/passwd",
            "//",
        ] {
            assert!(url.redirected(location).is_err(), "{location}");
        }
    }
}
