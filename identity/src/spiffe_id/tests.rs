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
