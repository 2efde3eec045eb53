use super::*;
use crate::store::testing::{domain, entry};

fn index(entries: &[Entry]) -> Index {
    let mut index = Index::new(&domain());
    for (row, entry) in (1..).zip(entries) {
        index.put(row, entry).unwrap();
    }
    index
}

fn ids(index: &Index, slots: impl IntoIterator<Item = Slot>) -> Vec<String> {
    let mut ids: Vec<String> = slots.into_iter().map(|slot| index.id(slot)).collect();
    ids.sort_unstable();
    ids
}

#[test]
fn what_gives_the_same_identity_is_found_as_entries_come_change_and_go() {
    let like = |id: &str, selector: &str| entry(id, "/a", "/spire/agent/1", &[selector]);
    let mut index = index(&[like("one", "u:1"), like("two", "u:2"), like("twin", "u:1")]);
    let find = |index: &Index, selector: &str, meant: &str| {
        let slot = index.similar(&like("other", selector), |index, slot| index.id(slot) == meant);
        slot.is_some()
    };
    assert!(find(&index, "u:1", "one") && find(&index, "u:1", "twin") && find(&index, "u:2", "two"));
    assert!(!find(&index, "u:1", "two") && !find(&index, "u:3", "one"));
    index.put(1, &like("one", "u:3")).unwrap();
    assert!(!find(&index, "u:1", "one") && find(&index, "u:3", "one") && find(&index, "u:1", "twin"));
    index.remove(index.slot("twin").unwrap());
    assert!(!find(&index, "u:1", "twin"));
    index.recycle();
    for n in 0..100 {
        index
            .put(10 + n, &like(&format!("n{n}"), &format!("u:{n}")))
            .unwrap();
    }
    assert!((0..100).all(|n| find(&index, &format!("u:{n}"), &format!("n{n}"))));
    assert!(find(&index, "u:3", "one") && find(&index, "u:2", "two"));
}

#[test]
fn gives_back_every_field_of_an_entry() {
    let mut parts = entry(
        "67e55044-10b1-426f-9247-bb680e5fe0c8",
        "/db",
        "/spire/agent/a",
        &["unix:uid:1"],
    )
    .into_parts();
    parts
        .selectors
        .extend((2..9).map(|n| Selector::new("unix", &format!("gid:{n}")).unwrap()));
    parts.x509_svid_ttl = 60;
    parts.jwt_svid_ttl = 61;
    parts.federates_with = vec![
        TrustDomain::parse("z.test").unwrap(),
        TrustDomain::parse("a.test").unwrap(),
    ];
    parts.admin = true;
    parts.downstream = true;
    parts.expires_at = 1_900_000_000;
    parts.dns_names = vec!["b.test".into(), "a.test".into()];
    parts.revision_number = i64::from(u32::MAX) + 5;
    parts.hint = "internal".into();
    parts.created_at = 1_700_000_000;
    parts.disable_x509_svid_prefetch = true;
    parts.jwt_svid_include_jti = true;
    let full = Entry::check(parts, &domain()).unwrap();
    let plain = entry("plain.id", "/db", "/spire/agent/b", &["unix:uid:1", "unix:gid:2"]);
    let index = index(&[full.clone(), plain.clone()]);
    assert_eq!(*index.entry(index.slot(&full.id).unwrap()), full);
    assert_eq!(*index.entry(index.slot("plain.id").unwrap()), plain);
}

#[test]
fn lists_children_and_holders() {
    let index = index(&[
        entry("a", "/w1", "/p", &["u:1"]),
        entry("b", "/w2", "/p", &["u:2"]),
        entry("c", "/w1", "/q", &["u:3"]),
    ]);
    let number = |path: &str| index.ids.find(path).unwrap();
    assert_eq!(ids(&index, index.children(number("/p"))), ["a", "b"]);
    assert_eq!(ids(&index, index.holders(number("/w1"))), ["a", "c"]);
    assert_eq!(ids(&index, index.holders(number("/p"))), [] as [&str; 0]);
}

#[test]
fn removal_from_the_middle_of_a_list_keeps_the_others() {
    let mut index = index(&[
        entry("a", "/w", "/p", &["u:1"]),
        entry("b", "/w", "/p", &["u:2"]),
        entry("c", "/w", "/p", &["u:3"]),
    ]);
    index.remove(index.slot("b").unwrap());
    let number = |path: &str| index.ids.find(path).unwrap();
    assert_eq!(ids(&index, index.children(number("/p"))), ["a", "c"]);
    assert_eq!(ids(&index, index.holders(number("/w"))), ["a", "c"]);
    assert_eq!(index.slot("b"), None);
    assert_eq!(index.len(), 2);
}

#[test]
fn a_removed_entry_leaves_no_text_behind() {
    let mut index = index(&[entry("a", "/w", "/p", &["u:1"])]);
    index.remove(index.slot("a").unwrap());
    assert_eq!(index.ids.find("/w"), None);
    assert_eq!(index.ids.find("/p"), None);
    assert_eq!(index.selectors.find("u:1"), None);
}

#[test]
fn a_freed_slot_is_given_again_only_after_recycling() {
    let mut index = index(&[entry("a", "/w", "/p", &["u:1"])]);
    let freed = index.slot("a").unwrap();
    index.remove(freed);
    assert_ne!(index.put(2, &entry("b", "/w", "/p", &["u:1"])), Some(freed));
    index.recycle();
    assert_eq!(index.put(3, &entry("c", "/w", "/p", &["u:1"])), Some(freed));
}

#[test]
fn finds_aliases_whose_selectors_are_all_given() {
    let server = "/spire/server";
    let mut index = index(&[
        entry("x", "/n1", server, &["k8s:a", "k8s:b"]),
        entry("y", "/n2", server, &["k8s:b"]),
        entry("z", "/n3", server, &["k8s:a", "k8s:c"]),
        entry("w", "/n4", "/p", &["k8s:a"]),
    ]);
    let given = |texts: &[&str]| -> Vec<Selector> {
        texts.iter().map(|text| Selector::parse(text).unwrap()).collect()
    };
    assert_eq!(
        ids(&index, index.aliases_within(&given(&["k8s:a", "k8s:b"]))),
        ["x", "y"]
    );
    assert_eq!(
        ids(&index, index.aliases_within(&given(&["k8s:a"]))),
        [] as [&str; 0]
    );
    index.remove(index.slot("x").unwrap());
    assert_eq!(
        ids(&index, index.aliases_within(&given(&["k8s:a", "k8s:b", "k8s:c"]))),
        ["y", "z"]
    );
}

#[test]
fn ignores_entries_of_other_trust_domains() {
    let other = TrustDomain::parse("other.test").unwrap();
    let mut parts = entry("a", "/w", "/p", &["u:1"]).into_parts();
    parts.spiffe_id = SpiffeId::new(&other, "/w").unwrap();
    parts.parent_id = SpiffeId::new(&other, "/p").unwrap();
    let foreign = Entry::check(parts, &other).unwrap();
    assert_eq!(Index::new(&domain()).put(1, &foreign), None);
}

#[test]
fn pages_follow_rows_also_behind_a_row_that_is_gone() {
    let mut index = index(&[
        entry("a", "/w1", "/p", &["u:1"]),
        entry("b", "/w2", "/p", &["u:1"]),
        entry("c", "/w3", "/p", &["u:1"]),
    ]);
    index.remove(index.slot("b").unwrap());
    let rows: Vec<u64> = index.after(2).map(|(row, _)| row).collect();
    assert_eq!(rows, [3]);
    assert_eq!(index.after(0).count(), 2);
}
