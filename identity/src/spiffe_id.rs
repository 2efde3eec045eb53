//! SPIFFE IDs and trust domain names (SPIFFE-ID §2), checked byte by byte and never normalised.
//!
//! No URL parser stands behind this: those trim, drop tabs and percent-encode, while a SPIFFE ID
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
    /// A `%` stands in the name or the path.
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
mod tests {
    use super::SpiffeIdError as E;
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Result<SpiffeId, E> {
        SpiffeId::parse(text)
    }

    fn refused(cases: &[(&str, E)]) {
        for (text, why) in cases {
            assert_eq!(parse(text).as_ref(), Err(why), "{text:?}");
        }
    }

    #[test]
    fn e01_accepts_a_trust_domain_with_a_path() {
        let id = parse("spiffe://example.org/ns/prod/sa/web").unwrap();
        assert_eq!(id.trust_domain().as_str(), "example.org");
        assert_eq!(id.path(), "/ns/prod/sa/web");
        assert_eq!(id.to_string(), "spiffe://example.org/ns/prod/sa/web");
        assert_eq!(format!("{id:?}"), "spiffe://example.org/ns/prod/sa/web");
    }

    /// Covers ID-16.
    #[test]
    fn e02_id16_accepts_an_id_without_a_path_but_not_as_a_workload() {
        let id = parse("spiffe://example.org").unwrap();
        assert_eq!(id.path(), "");
        assert!(!id.has_path());
        assert!(!id.is_workload());
    }

    /// Covers ID-14.
    #[test]
    fn e03_id14_refuses_the_lone_slash() {
        refused(&[("spiffe://example.org/", E::TrailingSlash)]);
    }

    /// Covers ID-12.
    #[test]
    fn e04_id12_refuses_empty_path_segments() {
        refused(&[
            ("spiffe://example.org//a", E::EmptySegment),
            ("spiffe://example.org/a//b", E::EmptySegment),
        ]);
    }

    /// Covers ID-14.
    #[test]
    fn e05_id14_refuses_a_trailing_slash() {
        refused(&[("spiffe://example.org/a/", E::TrailingSlash)]);
    }

    /// Covers ID-13.
    #[test]
    fn e06_id13_refuses_dot_segments_and_never_normalises() {
        refused(&[
            ("spiffe://example.org/a/../b", E::DotSegment),
            ("spiffe://example.org/./a", E::DotSegment),
            ("spiffe://example.org/..", E::DotSegment),
        ]);
    }

    /// Covers ID-13.
    #[test]
    fn e07_id13_accepts_longer_runs_of_dots() {
        assert_eq!(parse("spiffe://example.org/...").unwrap().path(), "/...");
        assert_eq!(parse("spiffe://example.org/.a/..b").unwrap().path(), "/.a/..b");
    }

    /// Covers ID-09, ID-11.
    #[test]
    fn e08_id09_id11_refuses_percent_encoding() {
        refused(&[
            ("spiffe://example.org/a%20b", E::PercentEncoding),
            ("spiffe://example.org/%61", E::PercentEncoding),
            ("spiffe://ex%61mple.org/a", E::PercentEncoding),
        ]);
    }

    /// Covers ID-07, ID-21.
    #[test]
    fn e09_d01_refuses_upper_case_in_scheme_and_trust_domain() {
        refused(&[
            ("spiffe://Example.org/a", E::TrustDomainUpperCase('E')),
            ("SPIFFE://example.org/a", E::Scheme("SPIFFE://".into())),
        ]);
    }

    /// Covers ID-22.
    #[test]
    fn e10_id22_compares_paths_with_regard_to_case() {
        assert_ne!(
            parse("spiffe://example.org/A").unwrap(),
            parse("spiffe://example.org/a").unwrap()
        );
    }

    /// Covers ID-05.
    #[test]
    fn e11_id05_refuses_user_information() {
        refused(&[
            ("spiffe://user@example.org/a", E::UserInfo),
            ("spiffe://@example.org/a", E::UserInfo),
            ("spiffe://user:secret@example.org/a", E::UserInfo),
        ]);
    }

    /// Covers ID-06.
    #[test]
    fn e12_id06_refuses_a_port() {
        refused(&[
            ("spiffe://example.org:443/a", E::Port),
            ("spiffe://example.org:/a", E::Port),
        ]);
    }

    /// Covers ID-10.
    #[test]
    fn e13_id10_accepts_a_dotted_quad_as_an_ordinary_name() {
        assert_eq!(
            parse("spiffe://10.0.0.1/a").unwrap().trust_domain().as_str(),
            "10.0.0.1"
        );
    }

    /// Covers ID-08, ID-10.
    #[test]
    fn e14_id08_refuses_an_ipv6_literal() {
        refused(&[("spiffe://[::1]/a", E::TrustDomainCharacter('['))]);
    }

    /// Covers ID-08, ID-10.
    #[test]
    fn e15_id10_accepts_whatever_the_character_set_allows() {
        for text in ["spiffe://my_td-1.x/a_b-c.D", "spiffe://-/a", "spiffe://a..b/c"] {
            assert_eq!(parse(text).unwrap().as_str(), text);
        }
    }

    /// Covers ID-03, ID-04.
    #[test]
    fn e16_id03_id04_refuses_query_and_fragment() {
        refused(&[
            ("spiffe://example.org/a?", E::Query),
            ("spiffe://example.org/a?x=1", E::Query),
            ("spiffe://example.org/a#f", E::Fragment),
            ("spiffe://example.org/a#", E::Fragment),
            ("spiffe://example.org?x", E::Query),
        ]);
    }

    /// Covers ID-01, ID-02.
    #[test]
    fn e17_id01_id02_refuses_other_schemes_and_a_missing_trust_domain() {
        refused(&[
            ("spiffe://", E::NoTrustDomain),
            ("spiffe:///a", E::NoTrustDomain),
            ("spiffe:/example.org/a", E::Scheme("spiffe:/e".into())),
            ("spiffe:example.org/a", E::Scheme("spiffe:ex".into())),
            ("https://example.org/a", E::Scheme("https://e".into())),
            ("", E::Empty),
        ]);
    }

    /// Covers ID-19.
    #[test]
    fn e18_id19_holds_trust_domain_names_to_255_bytes() {
        assert!(parse(&format!("spiffe://{}/x", "a".repeat(255))).is_ok());
        let text = format!("spiffe://{}/x", "a".repeat(256));
        assert_eq!(parse(&text), Err(E::TrustDomainTooLong(256)));
        assert_eq!(
            TrustDomain::parse(&"a".repeat(256)),
            Err(E::TrustDomainTooLong(256))
        );
    }

    /// Covers ID-17, ID-18, ID-20.
    #[test]
    fn e19_id17_id18_id20_holds_ids_to_2048_bytes_in_all() {
        let td = TrustDomain::parse("example.org").unwrap();
        let path = format!("/{}", "a".repeat(2027));
        let id = parse(&format!("spiffe://example.org{path}")).unwrap();
        assert_eq!(id.as_str().len(), 2048);
        assert_eq!(SpiffeId::new(&td, &path).unwrap(), id);
        let path = format!("{path}a");
        assert_eq!(
            parse(&format!("spiffe://example.org{path}")),
            Err(E::TooLong(2049))
        );
        assert_eq!(SpiffeId::new(&td, &path), Err(E::TooLong(2049)));
    }

    /// Covers ID-08, ID-15.
    #[test]
    fn e20_id08_id15_refuses_other_characters_and_never_trims() {
        for odd in ['é', ' ', '\t', '\n', '\0', '*', '~', '+', '\\'] {
            for text in [
                format!("spiffe://ex{odd}ample.org/a"),
                format!("spiffe://example.org/a{odd}b"),
                format!("spiffe://example.org/a{odd}"),
                format!("{odd}spiffe://example.org/a"),
                format!("spiffe://example.org{odd}"),
            ] {
                assert!(parse(&text).is_err(), "{text:?}");
            }
        }
        for odd in [':', '@', '~', '+', '*', '\\'] {
            let text = format!("spiffe://example.org/a{odd}b");
            assert_eq!(parse(&text), Err(E::PathCharacter(odd)));
        }
    }

    /// Covers ID-07.
    #[test]
    fn id07_refuses_an_upper_case_bare_name() {
        assert_eq!(TrustDomain::parse("examplE"), Err(E::TrustDomainUpperCase('E')));
    }

    #[test]
    fn joins_trust_domain_and_path_and_checks_the_path() {
        let td = TrustDomain::parse("example.org").unwrap();
        assert_eq!(SpiffeId::new(&td, "").unwrap(), td.id());
        assert_eq!(td.id().as_str(), "spiffe://example.org");
        assert_eq!(td.server_id().as_str(), "spiffe://example.org/spire/server");
        assert_eq!(
            SpiffeId::new(&td, "/a/b").unwrap().as_str(),
            "spiffe://example.org/a/b"
        );
        assert_eq!(SpiffeId::new(&td, "a"), Err(E::NoLeadingSlash("a".into())));
        assert_eq!(SpiffeId::new(&td, "/a?b"), Err(E::Query));
        assert_eq!(SpiffeId::new(&td, "/"), Err(E::TrailingSlash));
    }

    #[test]
    fn tells_reserved_agent_and_workload_paths_apart() {
        let class = |path: &str| {
            let id = parse(&format!("spiffe://example.org{path}")).unwrap();
            (id.is_reserved(), id.is_agent(), id.is_workload())
        };
        assert_eq!(class(""), (false, false, false));
        assert_eq!(class("/spire"), (true, false, false));
        assert_eq!(class("/spire/server"), (true, false, false));
        assert_eq!(class("/spire/agent"), (true, false, false));
        assert_eq!(class("/spire/agent/x509pop/1"), (true, true, false));
        assert_eq!(class("/spirelike"), (false, false, true));
        assert_eq!(class("/Spire/agent/x"), (false, false, true));
        assert_eq!(class("/web"), (false, false, true));
    }

    #[test]
    fn membership_is_by_whole_trust_domain_name() {
        let id = parse("spiffe://example.org/a").unwrap();
        assert!(id.is_member_of(&TrustDomain::parse("example.org").unwrap()));
        assert!(!id.is_member_of(&TrustDomain::parse("example.or").unwrap()));
        assert!(!id.is_member_of(&TrustDomain::parse("b.test").unwrap()));
    }

    #[test]
    fn reads_a_trust_domain_from_a_name_or_an_id() {
        let name = |text| TrustDomain::parse_name_or_id(text).map(|td| td.to_string());
        assert_eq!(name("example.org").as_deref(), Ok("example.org"));
        assert_eq!(name("spiffe://example.org").as_deref(), Ok("example.org"));
        assert_eq!(
            name("spiffe://example.org/a"),
            Err(E::TrustDomainWithPath("/a".into()))
        );
        assert_eq!(name("spiffe://example.org/"), Err(E::TrailingSlash));
        assert_eq!(name("https://example.org"), Err(E::Scheme("https://e".into())));
        assert_eq!(name(""), Err(E::NoTrustDomain));
    }

    #[test]
    fn maps_keyed_by_ids_are_searched_by_text() {
        let id = parse("spiffe://example.org/a").unwrap();
        let hashed = std::collections::HashSet::from([id.clone()]);
        let sorted = std::collections::BTreeSet::from([id]);
        assert!(hashed.contains("spiffe://example.org/a"));
        assert!(sorted.contains("spiffe://example.org/a"));
    }

    proptest! {
        #[test]
        fn what_is_accepted_is_kept_byte_for_byte(text in "(spiffe://)?[a-z.:@/%A-C?# \\-]{0,24}") {
            if let Ok(id) = SpiffeId::parse(&text) {
                prop_assert_eq!(id.as_str(), &text);
                let again = SpiffeId::new(id.trust_domain(), id.path());
                prop_assert_eq!(again.as_ref(), Ok(&id));
            }
        }
    }
}
