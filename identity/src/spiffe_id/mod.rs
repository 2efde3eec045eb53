//! SPIFFE IDs and trust domain names (SPIFFE-ID §2), checked byte by byte and never normalised.
//!
//! No URL parser is used: those trim, drop tabs and percent-encode, while a SPIFFE ID
//! that is not already in its one form is refused.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use thiserror::Error;

/// Longest SPIFFE ID in bytes, scheme included (SPIFFE-ID §2.3).
pub const MAX_SPIFFE_ID_BYTES: usize = 2048;

/// Longest trust domain name in bytes (SPIFFE-ID §2.3).
pub const MAX_TRUST_DOMAIN_BYTES: usize = 255;

/// The name of a trust domain, such as `example.org`: 1 to 255 bytes of `[a-z0-9._-]`.
///
/// Cloning is cheap: the text is shared.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TrustDomain(Arc<str>);

/// A SPIFFE ID, such as `spiffe://example.org/ns/prod/sa/web`; the path may be absent.
///
/// Two IDs are equal when their bytes are (SPIFFE-ID §2.4; upper case in the scheme or the trust
/// domain was refused before). Cloning is cheap: the text is shared.
#[derive(Clone)]
pub struct SpiffeId {
    text: Arc<str>,
    trust_domain: TrustDomain,
}

/// The rule of SPIFFE-ID §2 that a text breaks.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SpiffeIdError {
    /// There is no text at all.
    #[error("SPIFFE ID is empty")]
    Empty,
    /// The whole ID exceeds 2048 bytes.
    #[error("SPIFFE ID is longer than {MAX_SPIFFE_ID_BYTES} bytes: {0}")]
    TooLong(usize),
    /// The text does not begin with `spiffe://` in lower case.
    #[error("SPIFFE ID does not begin with spiffe://: {0:?}")]
    Scheme(String),
    /// The trust domain name has no characters.
    #[error("trust domain name is empty")]
    NoTrustDomain,
    /// The trust domain name exceeds 255 bytes.
    #[error("trust domain name is longer than {MAX_TRUST_DOMAIN_BYTES} bytes: {0}")]
    TrustDomainTooLong(usize),
    /// The authority part carries user information.
    #[error("trust domain name carries user information before an '@'")]
    UserInfo,
    /// The authority part carries a port.
    #[error("trust domain name carries a port after a ':'")]
    Port,
    /// The trust domain name has upper-case letters; they are never lowered silently.
    #[error("trust domain name has an upper-case letter: {0:?}")]
    TrustDomainUpperCase(char),
    /// The trust domain name has another character outside its set.
    #[error("trust domain name has a character outside [a-z0-9._-]: {0:?}")]
    TrustDomainCharacter(char),
    /// A bare trust domain was asked for, and a path follows.
    #[error("trust domain is followed by a path: {0:?}")]
    TrustDomainWithPath(String),
    /// A `?` begins a query component.
    #[error("SPIFFE ID has a query component")]
    Query,
    /// A `#` begins a fragment component.
    #[error("SPIFFE ID has a fragment component")]
    Fragment,
    /// A `%` is in the name or the path.
    #[error("SPIFFE ID has a percent-encoded character")]
    PercentEncoding,
    /// A path that is not empty does not begin with a slash.
    #[error("path does not begin with a slash: {0:?}")]
    NoLeadingSlash(String),
    /// The path ends in a slash; the lone `/` too.
    #[error("path ends in a slash")]
    TrailingSlash,
    /// Two slashes follow each other.
    #[error("path has an empty segment")]
    EmptySegment,
    /// A segment is `.` or `..`.
    #[error("path has a segment that is '.' or '..'")]
    DotSegment,
    /// A path segment has a character outside its set.
    #[error("path has a character outside [a-zA-Z0-9._-]: {0:?}")]
    PathCharacter(char),
}

impl TrustDomain {
    /// Parses a bare name (`example.org`).
    ///
    /// # Errors
    /// The rule of SPIFFE-ID §2.1 that the name breaks.
    pub fn parse(name: &str) -> Result<Self, SpiffeIdError> {
        check_trust_domain(name)?;
        Ok(Self(name.into()))
    }

    /// Parses a bare name or the trust domain's SPIFFE ID (`spiffe://example.org`), as configuration
    /// and the API accept it.
    ///
    /// # Errors
    /// The rule that the text breaks; an ID with a path is refused.
    pub fn parse_name_or_id(text: &str) -> Result<Self, SpiffeIdError> {
        if !text.contains("://") {
            return Self::parse(text);
        }
        let id = SpiffeId::parse(text)?;
        if id.has_path() {
            return Err(SpiffeIdError::TrustDomainWithPath(id.path().to_owned()));
        }
        Ok(id.trust_domain)
    }

    /// The bare name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The SPIFFE ID of the trust domain itself: `spiffe://<name>`, without a path.
    #[must_use]
    pub fn id(&self) -> SpiffeId {
        SpiffeId::join(self, "")
    }

    /// The SPIFFE ID of the trust domain's servers, as SPIRE names it: `spiffe://<name>/spire/server`.
    #[must_use]
    pub fn server_id(&self) -> SpiffeId {
        SpiffeId::join(self, "/spire/server")
    }
}

impl SpiffeId {
    /// Parses the text of a SPIFFE ID.
    ///
    /// # Errors
    /// The rule of SPIFFE-ID §2 that the text breaks.
    pub fn parse(text: &str) -> Result<Self, SpiffeIdError> {
        if text.is_empty() {
            return Err(SpiffeIdError::Empty);
        }
        check_length(text.len())?;
        let Some(rest) = text.strip_prefix(SCHEME) else {
            let shown: String = text.chars().take(SCHEME.len()).collect();
            return Err(SpiffeIdError::Scheme(shown));
        };
        if let Some(mark) = rest.chars().find(|c| matches!(c, '?' | '#')) {
            return Err(if mark == '?' {
                SpiffeIdError::Query
            } else {
                SpiffeIdError::Fragment
            });
        }
        let (name, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        check_trust_domain(name)?;
        check_path(path)?;
        Ok(Self {
            text: text.into(),
            trust_domain: TrustDomain(name.into()),
        })
    }

    /// Makes an ID in a trust domain from a path, which is empty or begins with a slash.
    ///
    /// # Errors
    /// The rule of SPIFFE-ID §2.2 or §2.3 that the path breaks.
    pub fn new(trust_domain: &TrustDomain, path: &str) -> Result<Self, SpiffeIdError> {
        check_length(SCHEME.len() + trust_domain.0.len() + path.len())?;
        check_path(path)?;
        Ok(Self::join(trust_domain, path))
    }

    /// The trust domain that the ID is in.
    #[must_use]
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The path, with its leading slash; empty for the ID of a trust domain.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.text[SCHEME.len() + self.trust_domain.0.len()..]
    }

    /// The whole text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether the ID is in the trust domain, with or without a path.
    #[must_use]
    pub fn is_member_of(&self, trust_domain: &TrustDomain) -> bool {
        self.trust_domain == *trust_domain
    }

    /// Whether there is a path: only such an ID can name a workload (X509-SVID §3.1).
    #[must_use]
    pub fn has_path(&self) -> bool {
        !self.path().is_empty()
    }

    /// Whether the path is `/spire` or below it, the part of the name space that SPIRE keeps for
    /// servers and agents.
    #[must_use]
    pub fn is_reserved(&self) -> bool {
        match self.path().strip_prefix("/spire") {
            Some(rest) => rest.is_empty() || rest.starts_with('/'),
            None => false,
        }
    }

    /// Whether the ID is an agent's: below `/spire/agent/`.
    #[must_use]
    pub fn is_agent(&self) -> bool {
        self.path().starts_with("/spire/agent/")
    }

    /// Whether a workload may bear the ID: it has a path, and that is not reserved.
    #[must_use]
    pub fn is_workload(&self) -> bool {
        self.has_path() && !self.is_reserved()
    }

    /// Joins parts that were checked.
    fn join(trust_domain: &TrustDomain, path: &str) -> Self {
        let text = [SCHEME, trust_domain.as_str(), path].concat();
        Self {
            text: text.into(),
            trust_domain: trust_domain.clone(),
        }
    }
}

const SCHEME: &str = "spiffe://";

fn check_length(bytes: usize) -> Result<(), SpiffeIdError> {
    if bytes > MAX_SPIFFE_ID_BYTES {
        return Err(SpiffeIdError::TooLong(bytes));
    }
    Ok(())
}

fn check_trust_domain(name: &str) -> Result<(), SpiffeIdError> {
    if name.is_empty() {
        return Err(SpiffeIdError::NoTrustDomain);
    }
    if name.len() > MAX_TRUST_DOMAIN_BYTES {
        return Err(SpiffeIdError::TrustDomainTooLong(name.len()));
    }
    let allowed = |c: char| matches!(c, 'a'..='z' | '0'..='9' | '.' | '-' | '_');
    let Some(odd) = name.chars().find(|c| !allowed(*c)) else {
        return Ok(());
    };
    Err(match odd {
        _ if name.contains('@') => SpiffeIdError::UserInfo,
        ':' => SpiffeIdError::Port,
        '%' => SpiffeIdError::PercentEncoding,
        'A'..='Z' => SpiffeIdError::TrustDomainUpperCase(odd),
        _ => SpiffeIdError::TrustDomainCharacter(odd),
    })
}

fn check_path(path: &str) -> Result<(), SpiffeIdError> {
    if path.is_empty() {
        return Ok(());
    }
    let Some(segments) = path.strip_prefix('/') else {
        let shown: String = path.chars().take(64).collect();
        return Err(SpiffeIdError::NoLeadingSlash(shown));
    };
    if path.ends_with('/') {
        return Err(SpiffeIdError::TrailingSlash);
    }
    for segment in segments.split('/') {
        match segment {
            "" => return Err(SpiffeIdError::EmptySegment),
            "." | ".." => return Err(SpiffeIdError::DotSegment),
            _ => {}
        }
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        if let Some(odd) = segment.chars().find(|c| !allowed(*c)) {
            return Err(match odd {
                '%' => SpiffeIdError::PercentEncoding,
                '?' => SpiffeIdError::Query,
                '#' => SpiffeIdError::Fragment,
                _ => SpiffeIdError::PathCharacter(odd),
            });
        }
    }
    Ok(())
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for TrustDomain {
    type Err = SpiffeIdError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::parse(name)
    }
}

impl Borrow<str> for TrustDomain {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for TrustDomain {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for SpiffeId {
    type Err = SpiffeIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

// The text decides alone: it contains the trust domain. `Borrow` needs the same order and hash.

impl PartialEq for SpiffeId {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for SpiffeId {}

impl PartialOrd for SpiffeId {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for SpiffeId {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.text.cmp(&other.text)
    }
}

impl std::hash::Hash for SpiffeId {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.text.hash(state);
    }
}

impl Borrow<str> for SpiffeId {
    fn borrow(&self) -> &str {
        &self.text
    }
}

impl AsRef<str> for SpiffeId {
    fn as_ref(&self) -> &str {
        &self.text
    }
}

#[cfg(test)]
mod tests;
